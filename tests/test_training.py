"""Training: the same weights from the same seed, whole after any interruption, and bits/dim that are right.

Oracles: flows whose density is known in closed form, sets of images whose entropy is known.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowinv.flows import Affine, Flow, Quantile
from flowinv.flows.architectures import DenseConfig, GlowConfig, RealNVPConfig
from flowinv.flows.bijection import Chain
from flowinv.flows.flow import UNIT
from flowinv.flows.layers.transforms import Gaussianize
from flowinv.priors import load_prior
from flowinv.store import BundleError, read_bundle, write_bundle
from flowinv.training import Progress, Trainer, TrainingConfig, TrainingDiverged, evaluate, read_config
from flowinv.training.config import read_toml

SHAPE = (1, 4, 4)
GLOW = GlowConfig(SHAPE, steps=(2,), hidden=8)
TINY = TrainingConfig(GLOW, epochs=4.0, batch=8, warmup=4, holdout=8, learning_rate=5e-3, seed=3)


def bytes_of(n: int, shape: tuple[int, ...] = SHAPE, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def blobs(n: int, seed: int = 0) -> Tensor:
    """Images with something to learn: neighbours alike."""
    rough = bytes_of(n, (1, 2, 2), 40, 216, seed).float()
    noise = bytes_of(n, SHAPE, 0, 20, seed + 1).float()
    return (torch.nn.functional.interpolate(rough, scale_factor=2) + noise).to(torch.uint8)


def state(trainer: Trainer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in trainer._tensors().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- determinism and interruption --------------------------------------------------------------------


def test_a_run_is_a_function_of_its_seed() -> None:
    images, ends = blobs(40), []
    before = torch.get_rng_state()
    for seed in (3, 3, 4):
        trainer = Trainer(replace(TINY, seed=seed), images)
        trainer.run(until=6)
        ends.append(state(trainer))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])
    assert torch.equal(torch.get_rng_state(), before), "the global random state was touched"


@pytest.mark.parametrize("flip", [False, True])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path: Path, flip: bool) -> None:
    images, config = blobs(40), replace(TINY, flip=flip)
    unbroken = Trainer(config, images)
    flow = unbroken.run()
    for stop in (5, 11):  # as after a kill: a new process knows nothing but the checkpoint
        part = Trainer(config, images)
        if stop > 5:
            part.load(tmp_path)
        part.run(tmp_path, until=stop)
    last = Trainer(config, images)
    last.load(tmp_path)
    assert last.step == 11 and last.seconds > 0
    resumed = last.run(tmp_path)
    assert last.step == last.total == unbroken.total
    assert same(state(last), state(unbroken)) and last.history == unbroken.history
    assert resumed.fingerprint() == flow.fingerprint()
    fresh = Trainer(config, images)
    fresh.run(until=5)
    fresh.optimizer.state.clear()  # broken on purpose: Adam's moments forgotten
    fresh.run()
    assert not same(state(fresh), state(unbroken))


def test_an_interrupt_saves_what_was_done(tmp_path: Path) -> None:
    images = blobs(40)
    unbroken = Trainer(TINY, images)
    unbroken.run()

    def stop(p: Progress) -> None:
        if p.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(TINY, images).run(tmp_path, stop)
    resumed = Trainer(TINY, images)
    resumed.load(tmp_path)
    assert resumed.step == 7
    resumed.run(tmp_path)
    assert same(state(resumed), state(unbroken))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(tmp_path: Path, number: int) -> None:
    images = blobs(40)
    trainer, unbroken = Trainer(TINY, images), Trainer(TINY, images)
    unbroken.run()
    adam, calls = trainer.optimizer.step, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return adam(*args, **options)

    trainer.optimizer.step = interrupted
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(tmp_path)
    assert signal.getsignal(number) == before
    resumed = Trainer(TINY, images)
    resumed.load(tmp_path)
    assert resumed.step == 3, "the step that was interrupted is whole"
    resumed.run()
    assert same(state(resumed), state(unbroken))


def test_half_a_step_is_never_saved(tmp_path: Path) -> None:
    trainer = Trainer(TINY, blobs(40))
    trainer.run(tmp_path, until=2)
    before = (tmp_path / "model.safetensors").read_bytes()
    adam = trainer.optimizer.step

    def twice(*args: Any, **options: Any) -> Any:
        adam(*args, **options)
        raise KeyboardInterrupt  # a second Ctrl-C is not held back

    trainer.optimizer.step = twice
    with pytest.raises(KeyboardInterrupt):
        trainer.run(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_training_in_a_thread_leaves_signals_alone() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            Trainer(TINY, blobs(40)).run(until=1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def test_checkpoints_are_written_on_the_way(tmp_path: Path) -> None:
    trainer, seen = Trainer(TINY, blobs(40)), []

    def look(p: Progress) -> None:
        if (tmp_path / "config.json").exists():
            seen.append((p.step, read_bundle(tmp_path, "flowinv-training")[0]["step"]))

    trainer.run(tmp_path, look, every=0.0, until=4)
    assert seen == [(2, 1), (3, 2), (4, 3)], "each step was saved before the next one began"


def test_divergence_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(TINY, blobs(40))
    trainer.run(tmp_path, until=3)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(trainer.flow.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match=r"step 3: bits/dim nan.*lower the learning rate"):
        trainer.run(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    images = blobs(40)
    Trainer(TINY, images).run(tmp_path, until=1)
    with pytest.raises(ValueError, match=r"other settings \(learning_rate, seed\)"):
        Trainer(replace(TINY, seed=9, learning_rate=1e-4), images).load(tmp_path)
    with pytest.raises(ValueError, match="was trained on 32 images, these are 31"):
        Trainer(TINY, images[1:]).load(tmp_path)
    with pytest.raises(ValueError, match="was trained on other images"):
        Trainer(TINY, blobs(40, seed=5)).load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Trainer(TINY, images).load(tmp_path / "nothing")


@pytest.mark.parametrize("fault", ["config", "weight", "shape", "nan", "moment", "average", "foreign"])
def test_damaged_checkpoints_are_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    trainer = Trainer(TINY, blobs(40))
    trainer.run(tmp_path, until=1)
    config, tensors = read_bundle(tmp_path, "flowinv-training")
    name = next(k for k in tensors if k.startswith("flow.state.") and tensors[k].is_floating_point())
    if fault == "config":
        del config["step"]
    elif fault == "weight":
        del tensors[name]
    elif fault == "shape":
        tensors[name] = torch.zeros(7)
    elif fault == "nan":
        tensors[name] = torch.full_like(tensors[name], math.nan)
    elif fault == "moment":
        del tensors[next(k for k in tensors if k.startswith("flow.optimizer.exp_avg."))]
    elif fault == "average":
        del tensors[next(k for k in tensors if k.startswith("average."))]
    else:
        config["format"] = "flowinv-prior"
    write_bundle(tmp_path, config, tensors, overwrite=True)
    other = Trainer(TINY, blobs(40))
    before = state(other)
    with pytest.raises(BundleError) as error:
        other.load(tmp_path)
    assert "\n" not in str(error.value)
    assert same(state(other), before) and other.step == 0, "a refused checkpoint leaves no trace"


def test_a_checkpoint_from_before_the_images_were_kept_in_it(tmp_path: Path) -> None:
    trainer = Trainer(TINY, blobs(40))
    trainer.run(tmp_path, until=2)
    config, tensors = read_bundle(tmp_path, "flowinv-training")
    del config["data"]
    write_bundle(tmp_path, config, tensors, overwrite=True)
    other = Trainer(TINY, blobs(40))
    other.load(tmp_path)
    assert other.step == 2


# -- what is optimised -------------------------------------------------------------------------------


def test_the_average_is_the_running_mean_it_should_be() -> None:
    config = replace(TINY, average=0.9)
    trainer = Trainer(config, blobs(40))
    expected = {k: v.detach().clone() for k, v in trainer.flow.named_parameters()}

    def follow(p: Progress) -> None:
        decay = min(0.9, p.step / (p.step + 9))
        for k, v in trainer.flow.named_parameters():
            expected[k] = decay * expected[k] + (1 - decay) * v.detach()

    flow = trainer.run(None, follow)
    found = dict(flow.named_parameters())
    assert all(torch.allclose(found[k], expected[k], atol=1e-6) for k in expected)
    last = Trainer(replace(config, average=0.0), blobs(40))
    flow = last.run()
    found, weights = dict(flow.named_parameters()), dict(last.flow.named_parameters())
    assert all(torch.allclose(found[k], weights[k], atol=1e-7) for k in weights)
    assert not flow.training


def test_every_image_is_seen_once_an_epoch_and_only_training_images() -> None:
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, *SHAPE).contiguous()
    trainer = Trainer(TINY, images)
    assert trainer.steps_per_epoch == 4 and trainer.total == 16
    epochs = [[trainer._batch(s)[:, 0, 0, 0].tolist() for s in range(4 * e, 4 * e + 4)] for e in range(2)]
    assert [sorted(k for batch in epoch for k in batch) for epoch in epochs] == [list(range(32))] * 2
    assert epochs[0] != epochs[1]


def test_flips_mirror_half_of_the_images() -> None:
    ramp = torch.arange(4, dtype=torch.uint8).expand(200, *SHAPE).contiguous()
    config = replace(TINY, flip=True, holdout=0, batch=200)
    first = Trainer(config, ramp)._batch(0)[:, 0]
    mirrored = (first == ramp[:, 0].flip(-1)).all(-1).all(-1)
    assert ((first == ramp[:, 0]).all(-1).all(-1) ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130  # 100 +- 4.2 standard deviations
    assert torch.equal(Trainer(replace(config, flip=False), ramp)._batch(0)[:, 0], ramp[:, 0])


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    trainer = Trainer(TINY, blobs(40))
    rates = [trainer.learning_rate(s) for s in range(trainer.total + 1)]
    assert rates[0] == pytest.approx(TINY.learning_rate / 4) and rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[8] == pytest.approx(TINY.learning_rate / 2) and max(rates) <= TINY.learning_rate


# -- bits/dim ----------------------------------------------------------------------------------------


def bits(flow: Flow, images: Tensor, **options: Any) -> Tensor:
    return torch.cat(list(evaluate(flow, images, **options)))


@pytest.mark.parametrize("depth", [1, 5, 8])
def test_a_histogram_flow_has_the_entropy_of_its_histogram(depth: int) -> None:
    """Gaussianize with P(k) and no bijection: every pixel costs exactly -log2 P(k), whatever the noise."""
    p = torch.rand(2**depth, generator=torch.Generator().manual_seed(1)).double() + 0.1
    p /= p.sum()
    cdf = torch.cat([torch.zeros(1).double(), p.cumsum(0)])
    flow = Flow(Chain([]), SHAPE, Gaussianize(cdf / cdf[-1]), UNIT, depth)
    images = bytes_of(250)
    levels = images.long() >> (8 - depth)
    expected = -p[levels].log2().mean((1, 2, 3))
    assert torch.allclose(bits(flow, images).double(), expected, atol=2e-5)
    assert not torch.allclose(bits(flow, images).double() - 1, expected, atol=0.5), "the quantisation is counted"


def test_an_affine_flow_has_its_closed_form() -> None:
    """x = (k + U) / 2^b under N(m, s^2): E bits/dim = log2(s sqrt(2 pi)) + b + E[(x - m)^2] / (2 s^2 ln 2)."""
    mean, sd, depth = 0.4, 0.3, 5
    flow = Flow(Affine(torch.full(SHAPE, mean), sd * torch.eye(16)), SHAPE, None, UNIT, depth)
    images = bytes_of(2000)
    level = (images.long() >> 3).double()
    second = ((level + 0.5) / 32 - mean).square() + 1 / (12 * 32**2)
    expected = math.log2(sd * math.sqrt(2 * math.pi)) + depth + second.mean() / (2 * sd**2 * math.log(2))
    assert float(bits(flow, images).mean()) == pytest.approx(float(expected), abs=2e-3)
    assert float(bits(flow, images).mean()) != pytest.approx(float(expected) - depth, abs=0.1)


def test_evaluation_depends_on_its_seed_alone() -> None:
    flow = Flow(Affine(torch.full(SHAPE, 0.4), 0.3 * torch.eye(16)), SHAPE, None, UNIT, 8)
    images = bytes_of(30)
    assert torch.equal(bits(flow, images), bits(flow, images))
    assert not torch.equal(bits(flow, images), bits(flow, images, seed=1))
    assert [len(part) for part in evaluate(flow, images, batch=13)] == [13, 13, 4]


@pytest.mark.parametrize("dequantization", ["learned", "uniform"])
@pytest.mark.parametrize("depth", [8, 5])
def test_noise_costs_its_bits_and_no_less(dequantization: Any, depth: int) -> None:
    """Independent uniform levels have ``depth`` bits per pixel: no model of fresh ones may claim fewer."""
    config = replace(TINY, dequantization=dequantization, bits=depth, transform="gaussianize")
    flow = Trainer(config, bytes_of(200)).run()
    test = bits(flow, bytes_of(400, seed=9))
    error = float(test.std()) / math.sqrt(len(test))
    assert depth - 4 * error < float(test.mean()) < depth + 0.1


def test_constant_images_cost_almost_nothing() -> None:
    images = torch.full((64, *SHAPE), 7, dtype=torch.uint8)
    config = replace(TINY, dequantization="uniform", holdout=0)
    value = float(bits(Trainer(config, images).run(), images).mean())
    count = 64 * 16  # Laplace's rule: P(7) = (n + 1) / (n + 256), the rest of the histogram is smoothing
    assert 0 <= value < math.log2((count + 256) / (count + 1)) + 0.02


def test_training_finds_what_there_is_to_find() -> None:
    config = replace(TINY, epochs=40.0, holdout=32, average=0.9)
    trainer, losses = Trainer(config, blobs(160)), []
    start = float(bits(trainer.result(), trainer.validation_images).mean())
    flow = trainer.run(None, lambda p: losses.append(p.bits_per_dim))
    end = float(bits(flow, trainer.validation_images).mean())
    # per block of four pixels: one of 176 levels, and four times one of 20
    entropy = (math.log2(176) + 4 * math.log2(20)) / 4
    assert entropy - 0.1 < end < start - 0.3
    assert sum(losses[-10:]) < sum(losses[:10]) - 3
    assert trainer.history[-1][0] == trainer.total


def test_evaluation_refuses_what_it_cannot_count() -> None:
    flow = Flow(Affine(torch.zeros(SHAPE), torch.eye(16)), SHAPE, None, UNIT, 8)
    with pytest.raises(ValueError, match=r"images must be bytes \(uint8\) .*, got torch.float32"):
        bits(flow, torch.rand(2, *SHAPE))
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 4, 4\), the data have \(1, 4, 6\)"):
        bits(flow, bytes_of(2, (1, 4, 6)))
    flow.bits = None
    with pytest.raises(ValueError, match="bits = None"):
        bits(flow, bytes_of(2))


def test_the_trainer_refuses_what_it_cannot_train_on() -> None:
    with pytest.raises(ValueError, match=r"images must be bytes \(uint8\)"):
        Trainer(TINY, torch.rand(40, *SHAPE))
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 4, 4\), the data have \(3, 4, 4\)"):
        Trainer(TINY, bytes_of(40, (3, 4, 4)))
    with pytest.raises(ValueError, match="8 training images leave none after a holdout of 8"):
        Trainer(TINY, bytes_of(8))
    with pytest.raises(ValueError, match="leave none"):
        Trainer(TINY, bytes_of(0))


@pytest.mark.parametrize("transform", ["gaussianize", "logit", "none"])
@pytest.mark.parametrize("flow", [GLOW, RealNVPConfig(SHAPE, scales=2, blocks=1, hidden=4)])
def test_every_transform_and_image_flow_trains(transform: Any, flow: Any) -> None:
    config = replace(TINY, flow=flow, transform=transform, bf16=transform == "logit")
    trained = Trainer(config, blobs(40)).run(until=3)
    assert torch.isfinite(bits(trained, blobs(10))).all()


# -- configs -----------------------------------------------------------------------------------------

GOOD = '[flow]\narchitecture = "glow"\nshape = [1, 4, 4]\nsteps = [2]\nhidden = 8\n'


def config_of(tmp_path: Path, text: str) -> TrainingConfig:
    (tmp_path / "c.toml").write_text(text)
    return read_config(tmp_path / "c.toml")


def test_a_config_and_its_round_trip(tmp_path: Path) -> None:
    config = config_of(tmp_path, "epochs = 3\nbits = 5\n" + GOOD)
    assert config.epochs == 3 and config.bits == 5 and config.flow == GlowConfig(SHAPE, (2,), 8)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 'many'\n" + GOOD, "setting epochs = 'many' is not valid: expected float"),
        ("epochs = nan\n" + GOOD, "epochs = nan"),
        ("epochs = 0\n" + GOOD, "epochs = 0 is out of range"),
        ("learning_rate = -1.0\n" + GOOD, "learning_rate = -1.0 is out of range"),
        ("learning_rate = inf\n" + GOOD, "learning_rate = inf"),
        ("batch = 2.5\n" + GOOD, "batch = 2.5 is not valid: expected int"),
        ("batch = true\n" + GOOD, "batch = True is not valid"),
        ("flip = 1\n" + GOOD, "flip = 1 is not valid: expected bool"),
        ("bits = 9\n" + GOOD, "bits = 9 is out of range"),
        ("seed = -1\n" + GOOD, r"training setting seed must lie in \[0, 2\^63\), got -1"),
        ("holdout = -5\n" + GOOD, "holdout = -5"),
        ("warmup = -5\n" + GOOD, "warmup = -5"),
        ("average = 1.0\n" + GOOD, "average = 1.0"),
        ("transform = 'sigmoid'\n" + GOOD, "transform = 'sigmoid'"),
        ("dequantization = 'no'\n" + GOOD, "dequantization = 'no'"),
        ("lr = 1e-3\n" + GOOD, r"unknown training settings \['lr'\]; known: .*learning_rate"),
        ("epochs = 3\n", r"needs a \[flow\] table"),
        ("flow = 3\n", r"needs a \[flow\] table"),
        ('[flow]\narchitecture = "vae"\nshape = [1, 4, 4]\n', "unknown architecture 'vae': expected one of glow"),
        ('[flow]\narchitecture = "glow"\n', "has no shape"),
        (GOOD + "depth = 3\n", r"unknown fields for glow: \['depth'\]"),
        (GOOD.replace("[2]", "8"), "flow setting steps = 8 is not valid"),
        (GOOD.replace("= 8", "= '8'"), "flow setting hidden = '8' is not valid"),
        (GOOD.replace("= 8", "= -8"), "flow setting hidden = -8 must be positive"),
        (GOOD.replace("[1, 4, 4]", "[1, 4]"), r"flow setting shape = \(1, 4\) is not valid"),
        (GOOD.replace("[1, 4, 4]", "[1, 4, 0]"), "must be positive"),
        (GOOD.replace("[1, 4, 4]", "[1, 4.5, 4]"), "shape = .* is not valid"),
        (GOOD + "mixing = 'none'\n", "flow setting mixing = 'none' is not valid"),
        (GOOD + "context = [3]\n", r"a prior has no context, the flow's is \(3,\)"),
        (
            '[flow]\narchitecture = "realnvp"\nshape = [1, 5, 5]\nscales = 1\n',
            "learned dequantization needs even sides",
        ),
        ("epochs = \n", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config_of(tmp_path, text)
    assert "\n" not in str(error.value) and "c.toml" in str(error.value)


def test_a_config_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such config"):
        read_config(tmp_path / "nothing.toml")
    with pytest.raises(FileNotFoundError, match="no such config"):
        read_config(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not TOML"):
        read_config(tmp_path / "b.toml")


def test_settings_are_checked_in_python_too() -> None:
    with pytest.raises(ValueError, match="training setting batch = '8' is not valid: expected int"):
        TrainingConfig(GLOW, batch="8")
    with pytest.raises(ValueError, match=r"takes images of shape \(4,\)"):
        Trainer(replace(TINY, flow=DenseConfig((4,))), blobs(40))


def test_the_configs_in_the_repository_are_read() -> None:
    folder = Path(__file__).parent.parent / "configs"
    priors = [path for path in folder.glob("*.toml") if not path.name.startswith("avi-")]
    assert len(priors) > 3
    for path in priors:
        assert read_config(path).flow.shape[0] in (1, 3)


def test_the_amortizers_configs_in_the_repository_are_read() -> None:
    from flowinv.solvers import settings_for
    from flowinv.tasks import task

    for path in (Path(__file__).parent.parent / "configs").glob("avi-*.toml"):
        values = read_toml(path)
        assert task(values.pop("task"), load_prior(values.pop("prior")).shape, sigma=values.pop("sigma")).operator.spec
        assert settings_for("avi", **values).steps > 0


def test_restarts_lengthen_a_run_without_changing_its_first_cycle() -> None:
    short, long = (Trainer(replace(TINY, epochs=2.0, warmup=1, restarts=r), blobs(40)) for r in ((), (1.0,)))
    assert long.total > short.total == long.cycles[0]
    for step in range(short.total):
        assert long.learning_rate(step) == short.learning_rate(step)
    assert long.learning_rate(short.total) == pytest.approx(0.5 * TINY.learning_rate)
    assert 0 < long.learning_rate(long.total - 1) < 0.5 * TINY.learning_rate


def test_more_dequantisations_tighten_the_bound_towards_the_exact_probability() -> None:
    """One pixel of one bit under p(x) = 2x: P(0) = 1/4, P(1) = 3/4 exactly; a single uniform draw bounds it by Jensen."""
    ramp = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)),
        [torch.distributions.transforms.PowerTransform(torch.tensor(0.5))],
    )
    flow = Flow(Quantile(ramp), (1, 2, 2), support=(0.0, 1.0), bits=1)
    images = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    one, many = (float(torch.cat(list(evaluate(flow, images, samples=k))).mean()) for k in (1, 256))
    # E[-log2 2x] for x uniform on (0, 1/2) is log2 e; the exact value is 2 - 1 bits less one: -log2 1/4 = 2
    assert one == pytest.approx(1 + 1 / torch.log(torch.tensor(2.0)).item(), abs=0.05)
    assert many == pytest.approx(2.0, abs=0.02)
    assert many < one
