(() => {
  "use strict";
  const DATA = JSON.parse(document.getElementById("flowinv-data").textContent);
  const { image: IMAGE, channels: C, height: H, width: W, draws: S, observations: B, bounded: BOUNDED } = DATA;
  const D = C * H * W, LEVELS = 256, [LOW, HIGH] = DATA.range;
  const $ = (id) => document.getElementById(id);

  // -- numbers ---------------------------------------------------------------------------------------------------
  const bytes = (text) => {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  };
  const floats = (text) => (text === null ? null : new Float32Array(bytes(text).buffer));
  const maps = {};
  for (const name of ["mean", "std", "lower", "upper", "entropy", "observed", "truth", "low", "high", "neighbours"]) maps[name] = floats(DATA[name]);
  const levels = bytes(DATA.levels);
  const picture = DATA.picture && { values: floats(DATA.picture.values), shape: DATA.picture.shape };

  const at = (c, row, col) => (c * H + row) * W + col;
  const known = (map, i) => (map === null || Number.isNaN(map[i]) ? null : map[i]);
  const drawValue = (s, b, e) => {
    const i = b * D + e;
    return maps.low[i] + ((levels[(s * B + b) * D + e] + 0.5) / LEVELS) * (maps.high[i] - maps.low[i]);
  };

  // wrapped Gaussian on a circle of 512 levels: mirrored at both ends, as in flowinv.summaries
  const kernels = new Map();
  const kernel = (h) => {
    if (!kernels.has(h)) {
      const period = 2 * LEVELS, g = new Float64Array(period);
      let sum = 0;
      for (let d = 0; d < period; d++) {
        for (let m = -3; m <= 3; m++) g[d] += h === 0 ? +(d === 0 && m === 0) : Math.exp(-0.5 * ((d + m * period) / h) ** 2);
        sum += g[d];
      }
      kernels.set(h, g.map((v) => v / sum));
    }
    return kernels.get(h);
  };
  const masses = (b, e) => {
    const counts = new Uint32Array(LEVELS), p = new Float64Array(LEVELS), period = 2 * LEVELS;
    for (let s = 0; s < S; s++) counts[levels[(s * B + b) * D + e]]++;
    // each draw's kernel is as wide as it must be to have enough neighbours within one standard deviation
    const need = maps.neighbours[b * D + e], sums = new Float64Array(period + 2 * LEVELS + 1);
    const mirrored = (k) => counts[k < 0 ? -1 - k : k >= LEVELS ? 2 * LEVELS - 1 - k : k];
    for (let k = -LEVELS; k < 2 * LEVELS; k++) sums[k + LEVELS + 1] = sums[k + LEVELS] + mirrored(k);
    const within = (j, h) => sums[j + h + LEVELS + 1] - sums[j - h + LEVELS];
    for (let j = 0; j < LEVELS; j++) {
      if (!counts[j]) continue;
      const h = DATA.bandwidths.find((wide) => within(j, wide) >= need) ?? DATA.bandwidths[DATA.bandwidths.length - 1];
      const n = counts[j] / S, g = kernel(h);
      if (h === 0) { p[j] += n; continue; }
      for (let k = 0; k < LEVELS; k++) p[k] += n * (g[(k - j + period) % period] + g[(k + j + 1) % period]);
    }
    return p;
  };
  const inside = (b, c, row, col) => [[b, B], [c, C], [row, H], [col, W]].every(([i, n]) => Number.isInteger(i) && i >= 0 && i < n);
  const guard = (b, c, row, col) => {
    if (!inside(b, c, row, col)) throw new RangeError(`no pixel (${b}, ${c}, ${row}, ${col}): expected below (${B}, ${C}, ${H}, ${W})`);
    return at(c, row, col);
  };
  const pixel = (b, c, row, col) => {
    const e = guard(b, c, row, col), i = b * D + e;
    return {
      mean: maps.mean[i], std: maps.std[i], entropy: maps.entropy[i], interval: [maps.lower[i], maps.upper[i]],
      observed: known(maps.observed, i), truth: known(maps.truth, i),
    };
  };
  const density = (b, c, row, col) => {
    const e = guard(b, c, row, col), i = b * D + e, width = (maps.high[i] - maps.low[i]) / LEVELS, p = masses(b, e);
    return { x: Array.from(p, (_, k) => maps.low[i] + (k + 0.5) * width), mass: Array.from(p), density: Array.from(p, (v) => v / width) };
  };

  // -- writing numbers -----------------------------------------------------------------------------------------------
  const minus = (text) => text.replace("-", "\u2212");
  const grouped = (v, digits) => v === null ? "not finite" : minus(v.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  const significant = (v) => {
    if (v === 0) return "0";
    const size = Math.floor(Math.log10(Math.abs(v)));
    return size >= 7 || size < -4 ? minus(v.toExponential(2)) : grouped(v, Math.max(0, 3 - size));
  };
  const unit = BOUNDED && LOW === 0 && HIGH === 1;
  const show = (v) => (v === null || v === undefined ? "\u2013" : unit ? minus(v.toFixed(3)) : significant(v));
  const bits = (v) => minus((Math.abs(v) < 0.005 ? 0 : v).toFixed(2)) + " bits";
  const channelName = (c) => (C === 3 ? ["Red", "Green", "Blue"][c] : C === 1 ? "" : `Channel ${c}`);

  // -- small drawing kit -----------------------------------------------------------------------------------------------
  const NS = "http://www.w3.org/2000/svg";
  const svg = (name, attributes, parent, text) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const tag = (name, attributes, parent, text) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999), out = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(k * step);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return out.map((v) => [v, Math.abs(v) >= 1e6 ? significant(v) : grouped(Math.abs(v) < step / 1e6 ? 0 : v, digits)]);
  };
  const glyph = {
    measured: (parent, x, y) => svg("path", { d: `M${x} ${y + 5} l-5 -9 h10 z`, class: "measured-glyph" }, parent),
    truth: (parent, x, y) => svg("path", { d: `M${x} ${y - 5} l5 5 l-5 5 l-5 -5 z`, class: "truth-glyph" }, parent),
  };

  /** Axes in a new svg of the holder's width; gives the scales X, Y and the svg. */
  const axes = (holder, height, [x0, x1], [y0, y1], xlabel, ylabel, label, top = 10, given = null) => {
    const width = Math.max(260, Math.round(holder.clientWidth));
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, holder);
    const yTicks = given || ticks(y0, y1, height > 170 ? 5 : 3);
    const left = 30 + 8 * Math.max(...yTicks.map(([, text]) => text.length)), right = width - 10, bottom = height - 38;
    const X = (v) => left + ((v - x0) / (x1 - x0)) * (right - left), Y = (v) => bottom - ((v - y0) / (y1 - y0)) * (bottom - top);
    for (const [v, text] of yTicks) {
      svg("line", { x1: left, x2: right, y1: Y(v), y2: Y(v), class: "axis" }, root);
      svg("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, root, text);
    }
    for (const [v, text] of ticks(x0, x1, Math.min(8, (right - left) / 64))) {
      svg("line", { x1: X(v), x2: X(v), y1: bottom, y2: bottom + 4, class: "axis" }, root);
      svg("text", { x: X(v), y: bottom + 17, "text-anchor": "middle" }, root, text);
    }
    svg("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }, root);
    svg("text", { x: (left + right) / 2, y: height - 5, "text-anchor": "middle", class: "title" }, root, xlabel);
    svg("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "title" }, root, ylabel);
    return { root, X, Y, left, right, top, bottom, width };
  };
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
  const quantile = (values, p) => {
    const sorted = Float64Array.from(values).sort();
    return sorted[Math.round(p * (sorted.length - 1))];
  };

  // -- colour -------------------------------------------------------------------------------------------------------
  const ramp = (stops) => {
    const rgb = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    const colour = (t) => {
      const u = Math.min(1, Math.max(0, t)) * (rgb.length - 1), i = Math.min(rgb.length - 2, Math.floor(u));
      return rgb[i].map((v, k) => v + (u - i) * (rgb[i + 1][k] - v));
    };
    colour.css = `linear-gradient(90deg, ${stops.join(", ")})`;
    return colour;
  };
  const INFERNO = ramp(["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"]);
  const VIRIDIS = ramp(["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"]);
  const GREY = ramp(["#000000", "#ffffff"]);
  const scaled = (v) => (v - LOW) / (HIGH - LOW || 1);

  /** Paint value(c, row, col) of a (channels, height, width) picture; NaN stays clear, so that the hatching shows through. */
  const paint = (canvas, [channels, height, width], value) => {
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const context = canvas.getContext("2d"), out = context.createImageData(width, height);
    for (let row = 0, o = 0; row < height; row++) {
      for (let col = 0; col < width; col++, o += 4) {
        let seen = false;
        for (let k = 0; k < 3; k++) {
          const t = scaled(value(channels === 3 ? k : 0, row, col));
          if (!Number.isNaN(t)) seen = true;
          out.data[o + k] = Number.isNaN(t) ? 96 : Math.round(255 * Math.min(1, Math.max(0, t)));
        }
        out.data[o + 3] = seen ? 255 : 0;
      }
    }
    context.putImageData(out, 0, 0);
  };
  /** Paint one number per pixel, the mean of a map over channels, with a colour ramp on [low, high]. */
  const paintMap = (canvas, map, b, colour, low, high) => {
    canvas.width = W; canvas.height = H;
    const context = canvas.getContext("2d"), out = context.createImageData(W, H);
    for (let p = 0; p < H * W; p++) {
      const rgb = colour((pooled(map, b, p) - low) / (high - low || 1));
      for (let k = 0; k < 3; k++) out.data[4 * p + k] = Math.round(rgb[k]);
      out.data[4 * p + 3] = 255;
    }
    context.putImageData(out, 0, 0);
  };
  const pooled = (map, b, p) => {
    let sum = 0;
    for (let c = 0; c < C; c++) sum += map[b * D + c * H * W + p];
    return sum / C;
  };
  const extent = (map, b) => {
    let low = Infinity, high = -Infinity;
    for (let p = 0; p < H * W; p++) { const v = pooled(map, b, p); low = Math.min(low, v); high = Math.max(high, v); }
    return [low, high];
  };

  // -- state ---------------------------------------------------------------------------------------------------------
  const state = { b: 0, row: Math.floor(H / 2), col: Math.floor(W / 2), held: false, draw: 0, channel: 0 };
  const frames = []; // every picture a pixel can be picked from: {node, mark, rows, cols, name}
  const shownChannels = () => (C <= 4 ? [...Array(C).keys()] : [state.channel]);
  const place = () => (IMAGE ? `row ${state.row}, column ${state.col}` : `element ${state.col}`);

  const select = (row, col, { hold = null, speak = false } = {}) => {
    state.row = Math.min(H - 1, Math.max(0, row));
    state.col = Math.min(W - 1, Math.max(0, col));
    if (hold !== null) state.held = hold;
    for (const frame of frames) {
      const r = Math.floor((state.row * frame.rows) / H), c = Math.floor((state.col * frame.cols) / W);
      Object.assign(frame.mark.style, {
        left: `${(100 * c) / frame.cols}%`, top: `${(100 * r) / frame.rows}%`, width: `${100 / frame.cols}%`, height: `${100 / frame.rows}%`,
      });
    }
    explorer();
    if (!IMAGE) moveCursor();
    if (speak) announce();
  };
  let waiting = 0;
  const announce = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const parts = shownChannels().map((c) => {
        const p = pixel(state.b, c, state.row, state.col);
        return `${channelName(c)} mean ${show(p.mean)}, standard deviation ${show(p.std)}, 90 percent interval ${show(p.interval[0])} to ${show(p.interval[1])}, `
          + `entropy ${bits(p.entropy)}` + (p.observed === null ? "" : `, measured ${show(p.observed)}`) + (p.truth === null ? "" : `, true value ${show(p.truth)}`);
      });
      $("announce").textContent = `${place()}: ${parts.join("; ")}`;
    }, 350);
  };
  const onKey = (event) => {
    const step = event.shiftKey ? 5 : 1;
    const moves = { ArrowLeft: [0, -step], ArrowRight: [0, step], ArrowUp: [-step, 0], ArrowDown: [step, 0], Home: [0, -W], End: [0, W] };
    if (!IMAGE) { moves.ArrowUp = [0, step]; moves.ArrowDown = [0, -step]; }
    if (event.key in moves) {
      event.preventDefault();
      const [dr, dc] = moves[event.key];
      select(state.row + dr, state.col + dc, { hold: true, speak: true });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      select(state.row, state.col, { hold: !state.held, speak: true });
    }
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") select(state.row, state.col, { hold: false }); });

  // -- pictures ----------------------------------------------------------------------------------------------------------
  const frame = (parent, name, rows, cols, focusable) => {
    const node = tag("div", { class: "frame", style: `aspect-ratio: ${cols} / ${rows}` }, parent);
    if (focusable) {
      for (const [key, value] of Object.entries({ tabindex: 0, role: "application", "aria-roledescription": "pixel picker", "aria-label": name, "aria-describedby": "picker-hint" })) node.setAttribute(key, value);
      node.addEventListener("keydown", onKey);
    } else {
      node.setAttribute("role", "img");
      node.setAttribute("aria-label", name);
    }
    const canvas = tag("canvas", { "aria-hidden": "true" }, node), mark = tag("div", { class: "mark" }, node);
    const find = (event) => {
      const box = node.getBoundingClientRect();
      const part = (v, n) => Math.min(n - 1, Math.max(0, Math.floor(v * n)));
      return [part((event.clientY - box.top) / box.height, H), part((event.clientX - box.left) / box.width, W)];
    };
    node.addEventListener("pointermove", (event) => { 
      if (state.held || event.pointerType !== "mouse") return;
      const [row, col] = find(event);
      if (row !== state.row || col !== state.col) select(row, col);
    });
    node.addEventListener("click", (event) => {
      const [row, col] = find(event);
      select(row, col, { hold: !(state.held && row === state.row && col === state.col), speak: true });
    });
    frames.push({ node, mark, rows, cols });
    return canvas;
  };
  const figure = (parent, name, rows = H, cols = W) => {
    const node = tag("figure", { class: "picture" }, parent);
    tag("figcaption", { class: "name" }, node, name);
    return { node, canvas: frame(node, name, rows, cols, true) };
  };
  const legend = (node, left, right, css) => {
    const below = tag("div", { class: "below" }, node);
    if (css) tag("span", { class: "bar", style: `background: ${css}` }, below);
    const line = tag("div", { class: "under" }, below), a = tag("span", {}, line, left), z = tag("span", {}, line, right);
    return { set: (l, r) => { a.textContent = l; z.textContent = r; } };
  };

  const painters = [];
  const buildPictures = () => {
    const holder = $("pictures");
    if (picture) {
      const [, h, w] = picture.shape, size = picture.shape[0] * h * w, part = figure(holder, "Measurement", h, w);
      let hidden = false;
      for (const v of picture.values) if (Number.isNaN(v)) { hidden = true; break; }
      legend(part.node, hidden ? "hatched: not measured" : h === H && w === W ? "what was given" : `${h} × ${w}`, "");
      painters.push(() => paint(part.canvas, picture.shape, (c, r, col) => picture.values[state.b * size + (c * h + r) * w + col]));
    }
    if (maps.truth) {
      const part = figure(holder, "Truth");
      legend(part.node, "not used for the posterior", "");
      painters.push(() => paint(part.canvas, [C, H, W], (c, r, col) => maps.truth[state.b * D + at(c, r, col)]));
    }
    const average = figure(holder, "Posterior mean");
    legend(average.node, ...(C === 3 ? [`average of ${S} draws`, ""] : unit ? ["0", "1", GREY.css] : [show(LOW), show(HIGH), GREY.css]));
    painters.push(() => paint(average.canvas, [C, H, W], (c, r, col) => maps.mean[state.b * D + at(c, r, col)]));

    if (C > 1) $("picker-hint").append(" The maps of deviation and entropy average the channels.");
    const deviation = figure(holder, "Standard deviation"), deviationBar = legend(deviation.node, "", "", INFERNO.css);
    painters.push(() => {
      const high = extent(maps.std, state.b)[1];
      paintMap(deviation.canvas, maps.std, state.b, INFERNO, 0, high);
      deviationBar.set("0", show(high));
    });
    const uncertain = figure(holder, "Entropy"), uncertainBar = legend(uncertain.node, "", "", VIRIDIS.css);
    painters.push(() => {
      const [low, high] = BOUNDED ? [0, 8] : extent(maps.entropy, state.b);
      paintMap(uncertain.canvas, maps.entropy, state.b, VIRIDIS, low, high);
      uncertainBar.set(BOUNDED ? "0 bits" : bits(low), bits(high).replace(".00", ""));
    });

    const single = figure(holder, "One draw"), player = tag("div", { class: "below player" }, single.node);
    const button = tag("button", { type: "button", "aria-pressed": "false" }, player, "Play");
    const slider = tag("input", { type: "range", min: 0, max: S - 1, value: 0, "aria-label": "Which draw" }, player);
    const paintDraw = () => {
      paint(single.canvas, [C, H, W], (c, r, col) => drawValue(state.draw, state.b, at(c, r, col)));
      single.node.querySelector("figcaption").textContent = `Draw ${state.draw + 1} of ${S}`;
      slider.value = state.draw;
    };
    painters.push(paintDraw);
    slider.addEventListener("input", () => { state.draw = +slider.value; paintDraw(); });
    let timer = 0;
    button.addEventListener("click", () => {
      if (timer) { clearInterval(timer); timer = 0; } else timer = setInterval(() => { state.draw = (state.draw + 1) % S; paintDraw(); }, 180);
      button.textContent = timer ? "Pause" : "Play";
      button.setAttribute("aria-pressed", String(!!timer));
    });

    const strip = $("strip");
    for (let s = 0; s < Math.min(S, 24); s++) {
      const canvas = frame(strip, `Draw ${s + 1}`, H, W, false);
      painters.push(() => paint(canvas, [C, H, W], (c, r, col) => drawValue(s, state.b, at(c, r, col))));
    }
  };

  // -- vectors ---------------------------------------------------------------------------------------------------------
  let moveCursor = () => {};
  const vectorPlot = () => {
    const holder = $("vector"), b = state.b, i = (e) => b * D + e;
    const focused = holder.contains(document.activeElement);
    holder.replaceChildren();
    let low = Infinity, high = -Infinity;
    const lines = Math.min(S, 24);
    for (let e = 0; e < D; e++) {
      for (const map of [maps.lower, maps.upper, maps.truth, maps.observed]) {
        const v = known(map, i(e));
        if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
      }
      for (let s = 0; s < lines; s++) { const v = drawValue(s, b, e); low = Math.min(low, v); high = Math.max(high, v); }
    }
    const pad = 0.04 * (high - low) || 1, few = D <= 60;
    const { root, X, Y, top, bottom } = axes(holder, 380, [-0.5, D - 0.5], [low - pad, high + pad], "element", "value", "Posterior of every element: mean, 90 % interval and draws");
    root.setAttribute("role", "application");
    root.setAttribute("aria-roledescription", "element picker");
    root.setAttribute("aria-describedby", "picker-hint");
    root.setAttribute("tabindex", "0");
    const all = [...Array(D).keys()];
    if (few) {
      const half = Math.min(9, 0.3 * (X(1) - X(0)));
      for (const e of all) svg("rect", { x: X(e) - half, width: 2 * half, y: Y(maps.upper[i(e)]), height: Math.max(1, Y(maps.lower[i(e)]) - Y(maps.upper[i(e)])), rx: 2, class: "area" }, root);
      for (const e of all) for (let s = 0; s < lines; s++) { const y = Y(drawValue(s, b, e)); svg("line", { x1: X(e) - half * 0.7, x2: X(e) + half * 0.7, y1: y, y2: y, class: "sample" }, root); }
      for (const e of all) svg("line", { x1: X(e) - half, x2: X(e) + half, y1: Y(maps.mean[i(e)]), y2: Y(maps.mean[i(e)]), class: "mean" }, root);
    } else {
      svg("path", { d: path([...all.map((e) => [X(e), Y(maps.upper[i(e)])]), ...all.slice().reverse().map((e) => [X(e), Y(maps.lower[i(e)])])]) + "Z", class: "area" }, root);
      for (let s = 0; s < lines; s++) svg("path", { d: path(all.map((e) => [X(e), Y(drawValue(s, b, e))])), class: "sample" }, root);
      svg("path", { d: path(all.map((e) => [X(e), Y(maps.mean[i(e)])])), class: "mean" }, root);
    }
    for (const [name, map] of [["measured", maps.observed], ["truth", maps.truth]]) {
      if (!map) continue;
      for (const e of all) { const v = known(map, i(e)); if (v !== null) few ? glyph[name](root, X(e), Y(v)) : svg("circle", { cx: X(e), cy: Y(v), r: 1.8, class: `${name}-glyph` }, root); }
    }
    const cursor = svg("line", { y1: top, y2: bottom, class: "cursor" }, root);
    moveCursor = () => { cursor.setAttribute("x1", X(state.col)); cursor.setAttribute("x2", X(state.col)); };
    moveCursor();
    const find = (event) => {
      const box = root.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * root.viewBox.baseVal.width;
      return Math.min(D - 1, Math.max(0, Math.round(((x - X(0)) / (X(1) - X(0) || 1)))));
    };
    root.addEventListener("pointermove", (event) => { if (!state.held && event.pointerType === "mouse") select(0, find(event)); });
    root.addEventListener("click", (event) => { const e = find(event); select(0, e, { hold: !(state.held && e === state.col), speak: true }); });
    root.addEventListener("keydown", onKey);
    const key = tag("div", { class: "legend" }, holder);
    for (const [name, text] of [["mean", "mean"], ["interval", "90 % interval"], ["observed", "measured"], ["truth", "true value"]]) {
      if (name in maps && !maps[name]) continue;
      const item = tag("span", {}, key);
      swatch(item, name);
      item.append(text);
    }
    if (focused) root.focus();
  };

  // -- explorer ---------------------------------------------------------------------------------------------------------
  const swatch = (parent, name) => {
    const box = svg("svg", { width: 18, height: 13, viewBox: "0 0 18 13", "aria-hidden": "true" }, parent);
    if (name === "mean") svg("line", { x1: 1, x2: 17, y1: 6.5, y2: 6.5, class: "mean" }, box);
    if (name === "interval") svg("rect", { x: 1, width: 16, y: 2, height: 9, rx: 2, class: "area" }, box);
    if (name === "observed") glyph.measured(box, 9, 7);
    if (name === "truth") glyph.truth(box, 9, 6.5);
    return box;
  };
  const densityPlot = (holder, c, tall) => {
    const { b, row, col } = state, i = b * D + at(c, row, col), found = density(b, c, row, col), p = pixel(b, c, row, col);
    const low = maps.low[i], high = maps.high[i], peak = Math.max(...found.density);
    const name = channelName(c), axis = (name ? name.toLowerCase() + " " : "") + (IMAGE ? "intensity" : `value of element ${col}`);
    const label = `Posterior density of ${place()}${name ? ", " + name : ""}: mean ${show(p.mean)}, entropy ${bits(p.entropy)}`;
    // a pixel that is almost surely black would hide the rest of its density under one spike: then heights are roots
    const flat = 1 / (high - low), rooted = peak > 15 * flat, rise = rooted ? Math.sqrt : (v) => v;
    const marks = rooted ? [0, 1, 10, 50, 100, 200].filter((v) => v * flat <= peak && (tall || v !== 1)).map((v) => [Math.sqrt(v * flat), v ? significant(v * flat) : "0"]) : null;
    if (marks) for (const mark of marks) if (flat === 1) mark[1] = mark[1].replace(/\.0+$/, "");
    const { root, X, Y: across, top, bottom } = axes(holder, tall ? 250 : 152, [low, high], [0, rise(peak) * 1.06], axis, rooted ? "density, root scale" : "density", label, 16, marks);
    const Y = (v) => across(rise(v));
    svg("rect", { x: X(p.interval[0]), width: Math.max(1, X(p.interval[1]) - X(p.interval[0])), y: top, height: bottom - top, class: "band" }, root);
    const curve = found.x.map((x, k) => [X(x), Y(found.density[k])]);
    svg("path", { d: `M${X(low)} ${bottom}L` + path(curve).slice(1) + `L${X(high)} ${bottom}Z`, class: "area" }, root);
    svg("path", { d: path(curve), class: "curve" }, root);
    const rule = (v, kind) => svg("line", { x1: X(v), x2: X(v), y1: top, y2: bottom, class: kind }, root);
    const clip = (v) => Math.min(high, Math.max(low, v));
    rule(clip(p.mean), "mean");
    if (p.observed !== null) { rule(clip(p.observed), "measured"); glyph.measured(root, X(clip(p.observed)), top - 6); }
    if (p.truth !== null) { rule(clip(p.truth), "truth"); glyph.truth(root, X(clip(p.truth)), top - 6); }
  };
  const explorer = () => {
    $("where").textContent = place();
    $("held").hidden = !state.held;
    const holder = $("densities"), table = $("numbers"), channels = shownChannels();
    holder.replaceChildren();
    for (const c of channels) densityPlot(holder, c, channels.length === 1);
    const found = channels.map((c) => pixel(state.b, c, state.row, state.col));
    table.replaceChildren();
    if (channels.length > 1) {
      const head = tag("tr", {}, tag("thead", {}, table));
      tag("td", {}, head);
      for (const c of channels) tag("th", { scope: "col" }, head, channelName(c));
    }
    const body = tag("tbody", {}, table), several = channels.length > 1;
    table.classList.toggle("several", several);
    const rows = [
      ["mean", "Mean", (p) => show(p.mean)],
      ["std", several ? "Std. deviation" : "Standard deviation", (p) => show(p.std)],
      ["interval", "90 % interval", (p) => `${show(p.interval[0])} … ${show(p.interval[1])}`],
      ["entropy", several ? "Entropy" : BOUNDED ? "Entropy (at most 8)" : "Differential entropy", (p) => bits(p.entropy)],
      ["observed", several ? "Measured" : "Measured here", (p) => (p.observed === null && !several ? "not measured" : show(p.observed))],
      ["truth", "True value", (p) => show(p.truth)],
    ];
    for (const [name, text, write] of rows) {
      if ((name === "observed" || name === "truth") && !maps[name]) continue;
      const row = tag("tr", { "data-number": name }, body), head = tag("th", { scope: "row" }, row);
      const cell = tag("span", { class: "item" }, head);
      swatch(cell, name);
      cell.append(text);
      for (const p of found) tag("td", {}, row, write(p));
    }
  };

  // -- tiles and charts ------------------------------------------------------------------------------------------------
  const judge = (b) => {
    const { value, expected, spread } = DATA.fit;
    if (!expected || value[b] === null) return null;
    const z = (value[b] - expected[b]) / spread[b];
    return Math.abs(z) <= 3 ? "fits" : z > 0 === (DATA.fit.statistic === "chi-squared") ? "misses" : "below";
  };
  const verdicts = {
    fits: "as expected", misses: "the draws miss the data", below: "less noise than the likelihood says",
  };
  const tiles = () => {
    const b = state.b, holder = $("tiles");
    holder.replaceChildren();
    const tile = (label, value, small, more) => {
      const node = tag("div", { class: "tile" }, holder);
      tag("div", { class: "label" }, node, label);
      const line = tag("div", { class: "value" }, node, value);
      if (small) { line.append(" "); tag("small", {}, line, small); }
      if (more) tag("div", { class: "more" }, node, more);
    };
    const elbo = DATA.elbo && DATA.elbo[b];
    if (elbo !== null && elbo !== undefined) {
      const error = DATA.elbo_se && DATA.elbo_se[b];
      tile("ELBO", grouped(elbo, 1), (error !== null && error !== undefined ? `± ${grouped(error, error < 0.1 ? 2 : 1)} ` : "") + "nats", DATA.normalised ? "log evidence is at least this" : "up to an unknown constant");
    }
    if (DATA.mixing) {
      const { rhat, stuck, ess, acceptance, exact, chains, draws } = DATA.mixing;
      const known = rhat[b] !== null, agree = known && rhat[b] <= 1.05;
      tile("R-hat of the chains", known ? rhat[b].toFixed(3) : stuck[b] ? "infinite" : "unknown", "", known ? `${agree ? "they agree" : "they disagree: run more steps"}; ${draws} draws worth ${significant(ess[b] ?? 0)}` : stuck[b] ? `${chains} chains, none of which moved: take smaller steps` : `${chains} chains, too short to tell`);
      tile("Acceptance", (100 * acceptance[b]).toFixed(0) + " %", "", exact ? "exact kernel" : "uncorrected kernel: biased by its step size");
    }
    const fit = DATA.fit, verdict = judge(b);
    const judged = verdict ? `: ${verdicts[verdict]}` : "";
    if (fit.statistic === "chi-squared") {
      tile("Data fit, chi-squared", grouped(fit.value[b], 2), "per measurement", fit.expected ? `expected ${grouped(fit.expected[b], 2)} ± ${grouped(fit.spread[b], 2)}${judged}` : "");
    } else {
      tile("Data fit, log-likelihood", grouped(fit.value[b], 1), "nats", fit.expected ? `expected ${grouped(fit.expected[b], 1)} ± ${grouped(fit.spread[b], 1)}${judged}` : "nothing to compare it with");
    }
    let deviation = 0, uncertainty = 0;
    for (let e = 0; e < D; e++) { deviation += maps.std[b * D + e] / D; uncertainty += maps.entropy[b * D + e] / D; }
    tile(`Mean entropy per ${C > 1 ? "value" : IMAGE ? "pixel" : "element"}`, minus((Math.abs(uncertainty) < 0.005 ? 0 : uncertainty).toFixed(2)), BOUNDED ? "of 8 bits" : "bits", `mean standard deviation ${show(deviation)}`);
    if (DATA.errors) {
      tile("Squared error of the mean", significant(DATA.errors.mean[b]), "", `${significant(DATA.errors.draws[b])} for single draws, summed`);
      tile("Truth in 90 % interval", (100 * DATA.coverage[b]).toFixed(0) + " %", C > 1 ? "of values" : IMAGE ? "of pixels" : "of elements", "one case, not a calibration test");
    }
  };
  const elboPlot = () => {
    const holder = $("elbo"), note = $("elbo-note");
    holder.replaceChildren();
    if (!DATA.trace || DATA.trace.step.length < 2) { note.textContent = "This posterior kept no record of its fit."; return; }
    const curve = DATA.trace.curve[DATA.trace.curve.length > 1 ? state.b : 0], steps = DATA.trace.step, n = curve.length;
    const late = curve.slice(Math.floor(n / 4)), top = quantile(curve, 1), middle = quantile(late, 0.5);
    const final = DATA.trace.curve.length === DATA.elbo?.length || DATA.total === 1 ? DATA.elbo?.[state.b] ?? null : null;
    // the first steps lie thousands of nats below: the scale is that of the later ones
    const reach = Math.max(quantile(late, 0.95) - quantile(late, 0.02), top - middle, 1);
    const low = Math.max(quantile(curve, 0), middle - 4 * reach, quantile(late, 0) - 1.5 * reach), high = Math.max(top, final ?? -Infinity);
    const pad = 0.05 * (high - low || 1);
    const { root, X, Y, left, right, bottom, top: ceiling } = axes(holder, 260, [steps[0], steps[n - 1]], [low - pad, high + pad], "step", `${DATA.trace.label} (nats)`, `${DATA.trace.label} over ${n} steps, from ${significant(curve[0])} to ${significant(curve[n - 1])} nats`);
    const id = "elbo-clip", clip = svg("clipPath", { id }, svg("defs", {}, root));
    svg("rect", { x: left, y: ceiling - 4, width: right - left, height: bottom - ceiling + 4 }, clip);
    const body = svg("g", { "clip-path": `url(#${id})` }, root), half = Math.max(2, Math.round(n / 50));
    svg("path", { d: path(curve.map((v, k) => [X(steps[k]), Y(Math.max(v, low - 50 * pad))])), class: "thin" }, body);
    const smooth = curve.map((_, k) => { const r = Math.min(half, k, n - 1 - k); return quantile(curve.slice(k - r, k + r + 1), 0.5); });
    svg("path", { d: path(smooth.map((v, k) => [X(steps[k]), Y(Math.max(v, low - 50 * pad))])), class: "curve" }, body);
    if (final !== null) svg("line", { x1: left, x2: right, y1: Y(final), y2: Y(final), class: "expected" }, body);
    note.textContent = "Thin: the estimate of each step; thick: its running median"
      + (final !== null ? "; dashed: the final ELBO from fresh draws." : ".")
      + (DATA.trace.curve.length === 1 && DATA.total > 1 ? ` Average over all ${DATA.total} observations.` : "")
      + (quantile(curve, 0) < low - pad ? ` The start, at ${significant(quantile(curve, 0))} nats, lies below the axis.` : "");
  };
  const fitPlot = () => {
    const holder = $("fit"), note = $("fit-note"), b = state.b, fit = DATA.fit, verdict = judge(b);
    holder.replaceChildren();
    const chance = fit.p_value ? ` A replica of the measurement is a worse fit with probability ${fit.p_value[b] < 0.01 ? "below 0.01" : fit.p_value[b].toFixed(2)}.` : "";
    if (!fit.residuals) {
      note.textContent = fit.expected
        ? `Log-likelihood of the measurement ${grouped(fit.value[b], 1)} nats, of replicas drawn from the model ${grouped(fit.expected[b], 1)} ± ${grouped(fit.spread[b], 1)}: ${verdicts[verdict]}.${chance}`
        : `Log-likelihood of the measurement ${grouped(fit.value[b], 1)} nats. This likelihood cannot be sampled, so there is nothing to compare it with.`;
      return;
    }
    const counts = fit.residuals[b], edges = fit.edges, total = counts.reduce((a, v) => a + v, 0), width = edges[1] - edges[0];
    const heights = counts.map((v) => v / (total * width)), normal = (x) => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
    const { root, X, Y, bottom } = axes(holder, 260, [edges[0], edges[edges.length - 1]], [0, 1.08 * Math.max(0.4, ...heights)], "standardised residual", "density", "Histogram of standardised residuals beside the standard normal density");
    heights.forEach((v, k) => { if (v > 0) svg("rect", { x: X(edges[k]), width: X(edges[k + 1]) - X(edges[k]), y: Y(v), height: bottom - Y(v), class: "bars" }, root); });
    const grid = [...Array(121).keys()].map((k) => -5 + k / 12);
    svg("path", { d: path(grid.map((x) => [X(x), Y(normal(x))])), class: "expected" }, root);
    note.textContent = `Bars: (measurement − prediction) / noise standard deviation over ${grouped(fit.count[b], 0)} measurements and all draws; dashed: standard normal. Chi-squared per measurement ${grouped(fit.value[b], 3)}`
      + (fit.expected ? `, expected ${fit.expected[b].toFixed(3)} ± ${fit.spread[b].toFixed(3)}: ${verdicts[verdict]}.` : ".") + chance;
  };

  // -- start ---------------------------------------------------------------------------------------------------------------
  const charts = () => { elboPlot(); fitPlot(); if (!IMAGE) vectorPlot(); explorer(); };
  const showObservation = (b) => {
    state.b = b;
    for (const run of painters) run();
    tiles();
    charts();
  };
  if (B > 1) {
    $("chooser").hidden = false;
    for (let b = 0; b < B; b++) tag("option", { value: b }, $("observation"), `${b}`);
    $("observation").addEventListener("change", (event) => showObservation(+event.target.value));
  }
  if (IMAGE && C > 4) {
    const label = tag("label", { class: "choice" }, document.querySelector("header.page"), "Channel "), chooser = tag("select", {}, label);
    for (let c = 0; c < C; c++) tag("option", { value: c }, chooser, `${c}`);
    chooser.addEventListener("change", () => { state.channel = +chooser.value; explorer(); });
  }
  $("entropy-text").textContent = BOUNDED
    ? "Its entropy counts 256 grey levels: 0 bits where the level is certain, 8 bits where all are equally likely."
    : "These data have no bounds, so the entropy is the differential one, in bits: one bit less for every halving of the spread.";
  if (IMAGE) buildPictures();
  else {
    $("pictures").hidden = true;
    $("strip-card").hidden = true;
    $("vector").hidden = false;
    $("explorer-title").textContent = "Element explorer";
    $("picker-hint").textContent = "Point at an element; click or tap to hold it, Esc to let go; arrow keys move by one, with Shift by five.";
  }
  showObservation(0);
  // start where the posterior is least certain: the most to see
  let start = 0;
  for (let p = 1; p < H * W; p++) if (pooled(maps.entropy, 0, p) > pooled(maps.entropy, 0, start)) start = p;
  select(Math.floor(start / W), start % W);
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; charts(); } });
  window.flowinv = { pixel, density, select: (row, col) => select(row, col, { hold: true }), observation: (b) => { $("observation").value = b; showObservation(b); }, state };
})();
