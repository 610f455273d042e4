"""The experiments of "Composing Normalizing Flows for Inverse Problems" (Whang, Lindgren and Dimakis), at a size for a CPU.

Tables 1 and 2, figures 1 and 3 to 10, and three studies that the paper does not have: what squared error a calibrated draw has
(`ideal`), how many steps an amortised start saves (`semi`), and what an amortised draw costs (`avi_speed`).

    python -m benchmarks.composing.tune mnist-bottom --data DATA         # step sizes, on validation images
    python -m benchmarks.composing.run mnist-bottom --data DATA          # rows, one image at a time; the same command goes on
    python -m benchmarks.composing.tables                                # docs/benchmarks/composing.md from the rows
    python -m benchmarks.composing.figures 7 --data DATA

DATA is a folder with mnist.npz, celeba10k_jpeg.npz or cifar10_jpeg.npz, and, for colour, the weights of the perceptual
networks: stlpips_alex.npz and squeezenet1_1_features.npz. `--budget paper` has the paper's own lengths, rates and
architectures; with `--device cuda --workers 1 --images 900` and a prior of the paper's size it is the paper's experiment.
"""
