// The map of embeddings. Names come from manifests: they reach the page as text only, never as markup.
"use strict";

(function () {
  const CELLS = 64; // a side of the grid that finds the nearest point
  const REACH = 24; // pixels: how far the pointer may be from a point that it means
  const EDGE = 16; // pixels between the outermost points and the border
  const STEPS = 24; // of the colour ramp for numbers
  const COLOURS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
  const RAMP = ["--r0", "--r1", "--r2", "--r3", "--r4", "--r5"];
  const SHAPES = ["circle", "square", "triangle", "diamond", "cross"];
  const UNKNOWN = "-";
  const CLOSEST = 64; // times: the most that the map is enlarged
  const ZOOM = 1.5; // by a press of a key or button
  const DRAG = 4; // pixels: a shorter way of the pointer is a click
  const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  const byId = (id) => document.getElementById(id);
  const box = byId("map");
  if (!box) return;
  const canvas = byId("plane");
  const context = canvas.getContext("2d");
  const points = document.createElement("canvas"); // all points, drawn once; marks go on top of a copy
  const { root, maps } = readJson("map-index");
  const columns = new Map();

  let run = null; // the map that is shown, with its columns
  let projection = null;
  let groups = []; // what the legend lists: {label, colour, shape, count, shown}
  let groupOf = null; // of each point
  let grid = null;
  let size = 0; // pixels of the plane's side
  let view = { zoom: 1, left: 0, bottom: 0 }; // what the plane shows; left and bottom in units of the map
  let drag = null; // the way of a pressed pointer
  const pressed = new Map(); // the pointers that are down, with their places: two fingers zoom
  let at = -1; // the point under the pointer or the keys
  let opened = -1; // the point whose trial is shown beside the map

  // Data

  function readJson(id) {
    return JSON.parse(byId(id).textContent);
  }

  function column(id) {
    if (!columns.has(id)) columns.set(id, readJson(id));
    return columns.get(id);
  }

  function load(entry) {
    return {
      top: 2 ** entry.bits - 1,
      count: entry.points,
      projections: entry.projections.map((p) => ({ ...p, x: column(p.x), y: column(p.y) })),
      utterance: column(entry.utterance),
      audio: column(entry.audio),
      categories: entry.categories.map((c) => ({ ...c, codes: column(c.codes) })),
      numbers: entry.numbers.map((n) => ({ ...n, values: column(n.values) })),
      neighbours: column(entry.neighbours),
    };
  }

  // What is known of a trial, as pairs of name and text.
  function facts(point) {
    const number = (value) => (value === null ? UNKNOWN : String(value));
    return [
      ...run.categories.map((c) => [c.name, c.names[c.codes[point]]]),
      ...run.numbers.map((n) => [n.name, number(n.values[point])]),
    ];
  }

  function inWords(point) {
    return [run.utterance[point], ...facts(point).map((pair) => pair.join(" "))].join(", ");
  }

  // Groups of points that look alike

  function groupByCategory({ names, codes }) {
    groups = names.map((label, code) => ({
      label, colour: cssColour(label === UNKNOWN ? "--soft" : COLOURS[code % COLOURS.length]),
      shape: SHAPES[code % SHAPES.length], count: 0, shown: true,
    }));
    groupOf = codes;
  }

  function groupByNumber(values) {
    const [low, high] = range(values);
    const ramp = RAMP.map(cssColour);
    groups = Array.from({ length: STEPS }, (_, step) => ({
      label: "", colour: onRamp(ramp, step / (STEPS - 1)), shape: "circle", count: 0, shown: true,
    }));
    groups.push({ label: "unknown", colour: cssColour("--soft"), shape: "cross", count: 0, shown: true });
    const step = (value) => Math.round(((STEPS - 1) * (value - low)) / (high - low || 1));
    groupOf = values.map((value) => (value === null ? STEPS : step(value)));
  }

  function range(values) {
    const known = values.filter((value) => value !== null);
    return known.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  }

  function cssColour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function onRamp(ramp, share) {
    const place = Math.min(share * (ramp.length - 1), ramp.length - 1.001);
    const [a, b] = [ramp[Math.floor(place)], ramp[Math.floor(place) + 1]];
    const part = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
    const mixed = [0, 1, 2].map((i) => part(a, i) + (place % 1) * (part(b, i) - part(a, i)));
    return `rgb(${mixed.map(Math.round).join(" ")})`;
  }

  const shown = (point) => groups[groupOf[point]].shown;

  // The grid: the points of every cell in one list, cell after cell

  function cellOf(value) {
    return Math.min(CELLS - 1, Math.max(0, Math.floor((value * CELLS) / (run.top + 1))));
  }

  function makeGrid({ x, y }) {
    const start = new Uint32Array(CELLS * CELLS + 1);
    const cells = Uint32Array.from(x, (value, i) => cellOf(y[i]) * CELLS + cellOf(value));
    for (const cell of cells) start[cell + 1] += 1;
    for (let cell = 0; cell < CELLS * CELLS; cell++) start[cell + 1] += start[cell];
    const next = start.slice();
    const members = new Uint32Array(cells.length);
    cells.forEach((cell, point) => (members[next[cell]++] = point));
    return { start, members };
  }

  // The nearest shown point to a place of the plane within reach, -1 where there is none; all in units of the map.
  function nearest(x, y, reach) {
    let best = -1;
    let least = reach * reach;
    for (let row = cellOf(y - reach); row <= cellOf(y + reach); row++) {
      const first = grid.start[row * CELLS + cellOf(x - reach)];
      const last = grid.start[row * CELLS + cellOf(x + reach) + 1];
      for (let i = first; i < last; i++) {
        const point = grid.members[i];
        const distance = (projection.x[point] - x) ** 2 + (projection.y[point] - y) ** 2;
        if (distance <= least && shown(point)) [best, least] = [point, distance];
      }
    }
    return best;
  }

  // The nearest shown point within 45 degrees of a direction, -1 where there is none.
  function nextInDirection(from, [right, up]) {
    let best = -1;
    let least = Infinity;
    for (let point = 0; point < run.count; point++) {
      const dx = projection.x[point] - projection.x[from];
      const dy = projection.y[point] - projection.y[from];
      const along = dx * right + dy * up;
      const aside = Math.abs(dx * up) + Math.abs(dy * right);
      const distance = dx * dx + dy * dy;
      if (along > 0 && aside <= along && distance < least && shown(point)) [best, least] = [point, distance];
    }
    return best;
  }

  // Drawing

  const scale = () => (view.zoom * (size - 2 * EDGE)) / run.top;
  const across = (x) => EDGE + (x - view.left) * scale();
  const down = (y) => size - EDGE - (y - view.bottom) * scale();
  const toMap = (x, y) => [view.left + (x - EDGE) / scale(), view.bottom + (size - EDGE - y) / scale()];
  const place = (point) => [across(projection.x[point]), down(projection.y[point])];

  function fit(target) {
    const density = window.devicePixelRatio || 1;
    target.width = target.height = Math.round(size * density);
    return density;
  }

  function trace(target, shape, x, y, radius) {
    const corners = {
      square: [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
      triangle: [[0, -1.15], [1.1, 0.85], [-1.1, 0.85]],
      diamond: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
      cross: [
        [-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4],
        [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4],
      ],
    };
    target.beginPath();
    if (shape === "circle") target.arc(x, y, radius, 0, 2 * Math.PI);
    else corners[shape].forEach(([dx, dy]) => target.lineTo(x + dx * radius, y + dy * radius));
    target.closePath();
  }

  // A marker on a canvas of its own: to copy it is quicker than to draw it.
  // hollow: for points that lie beyond the map and stand at its border.
  function marker(group, radius, density, hollow = false) {
    const made = document.createElement("canvas");
    const middle = Math.ceil(1.5 * radius);
    made.width = made.height = Math.ceil(2 * middle * density);
    const pen = made.getContext("2d");
    pen.scale(density, density);
    pen.fillStyle = group.colour;
    pen.globalAlpha = 0.8;
    trace(pen, group.shape, middle, middle, radius);
    pen.strokeStyle = group.colour;
    pen.lineWidth = 1.5;
    if (hollow) pen.stroke();
    else pen.fill();
    return made;
  }

  function drawPoints() {
    const density = fit(points);
    const radius = run.count > 5000 ? 2.2 : run.count > 500 ? 3 : 4;
    const markers = groups.map((group) => marker(group, radius, density));
    const far = new Set(projection.far);
    const hollow = far.size ? groups.map((group) => marker(group, radius + 2, density, true)) : [];
    const pen = points.getContext("2d");
    for (let point = 0; point < run.count; point++) {
      if (!shown(point)) continue;
      const image = (far.has(point) ? hollow : markers)[groupOf[point]];
      const [x, y] = place(point);
      pen.drawImage(image, Math.round(x * density - image.width / 2), Math.round(y * density - image.height / 2));
    }
    pen.scale(density, density);
    (projection.centroids || []).forEach(([x, y], k) => drawCentroid(pen, across(x), down(y), k));
  }

  function drawCentroid(pen, x, y, number) {
    trace(pen, "diamond", x, y, 8);
    pen.fillStyle = cssColour("--ink");
    pen.strokeStyle = cssColour("--page");
    pen.lineWidth = 2;
    pen.fill();
    pen.stroke();
    pen.fillStyle = cssColour("--page");
    pen.font = "600 10px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(String(number), x, y + 0.5);
  }

  function draw() {
    const density = fit(canvas);
    context.drawImage(points, 0, 0);
    context.scale(density, density);
    if (opened >= 0) drawOpened();
    if (at >= 0) ring(at, 6, 2);
  }

  function drawOpened() {
    context.strokeStyle = cssColour("--ink");
    context.lineWidth = 1;
    for (const neighbour of run.neighbours[opened]) {
      context.beginPath();
      context.moveTo(...place(opened));
      context.lineTo(...place(neighbour));
      context.stroke();
    }
    run.neighbours[opened].forEach((neighbour) => ring(neighbour, 6, 1.5));
    ring(opened, 9, 3);
  }

  function ring(point, radius, width) {
    for (const [colour, more] of [["--page", 2], ["--ink", 0]]) {
      context.beginPath();
      context.arc(...place(point), radius, 0, 2 * Math.PI);
      context.strokeStyle = cssColour(colour);
      context.lineWidth = width + more;
      context.stroke();
    }
  }

  // Zoom and pan

  // Enlarges by a factor; the place (x, y) of the plane stays where it is. The map never leaves the plane.
  function zoomAt(factor, x = size / 2, y = size / 2) {
    zoomTo(view.zoom * factor, toMap(x, y), { x, y });
  }

  // Enlarges so many times, and puts a place of the map at a place of the plane.
  function zoomTo(zoom, [mapX, mapY], { x, y }) {
    view.zoom = Math.min(CLOSEST, Math.max(1, zoom));
    look(mapX - (x - EDGE) / scale(), mapY - (size - EDGE - y) / scale());
  }

  function look(left, bottom) {
    const most = run.top - run.top / view.zoom;
    view = { ...view, left: Math.min(most, Math.max(0, left)), bottom: Math.min(most, Math.max(0, bottom)) };
    byId("whole").disabled = view.zoom === 1;
    canvas.classList.toggle("enlarged", view.zoom > 1);
    at = -1;
    requestAnimationFrame(() => {
      drawPoints();
      draw();
      showTip();
    });
  }

  function seeWhole() {
    view.zoom = 1;
    look(0, 0);
  }

  function onWheel(event) {
    // A wheel scrolls the page, unless Ctrl is held or the map was chosen by a click or a key.
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoomAt(2 ** (-event.deltaY / 300), event.offsetX, event.offsetY);
  }

  // Where two fingers are: their middle and their distance.
  function fingers() {
    const [a, b] = [...pressed.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  }

  // The place of the map that lay between the fingers stays between them.
  function pinch(event) {
    const before = fingers();
    pressed.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    const after = fingers();
    zoomTo(view.zoom * (after.apart / Math.max(before.apart, 1)), toMap(before.x, before.y), after);
  }

  function onMove(event) {
    if (pressed.size === 2 && pressed.has(event.pointerId)) return pinch(event);
    if (!drag) return pointAt(under(event));
    const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
    drag.moved ||= Math.hypot(dx, dy) > DRAG;
    if (drag.moved && view.zoom > 1) look(drag.left - dx / scale(), drag.bottom + dy / scale());
  }

  function onDown(event) {
    if (event.isPrimary) pressed.clear();
    pressed.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    drag = { x: event.offsetX, y: event.offsetY, left: view.left, bottom: view.bottom, moved: false };
    if (view.zoom > 1) canvas.setPointerCapture(event.pointerId);
  }

  function onUp(event) {
    pressed.delete(event.pointerId);
    setTimeout(() => (drag = null)); // after the click that may follow
  }

  // Two fingers are for the map, and not for the page around it.
  function onTouch(event) {
    if (event.touches.length > 1) event.preventDefault();
  }

  // The trial at hand

  function make(tag, text, name) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  function say(text) {
    byId("said").textContent = text;
  }

  function pointAt(point) {
    if (point === at) return;
    at = point;
    draw();
    showTip();
  }

  function showTip() {
    const tip = byId("tip");
    tip.hidden = at < 0;
    if (at < 0) return;
    tip.replaceChildren(make("strong", run.utterance[at]), ...facts(at).map((pair) => make("div", pair.join(": "))));
    const [x, y] = place(at);
    const left = x + 14 + tip.offsetWidth <= size ? x + 14 : x - 14 - tip.offsetWidth;
    const top = Math.min(y + 10, size - tip.offsetHeight);
    tip.style.transform = `translate(${Math.max(left, 0)}px, ${Math.max(top, 0)}px)`;
  }

  function open(point) {
    opened = point;
    const heading = make("h3", run.utterance[point]);
    heading.tabIndex = -1;
    byId("trial").replaceChildren(heading, factList(point), player(point), make("h4", "Nearest on this map"), list(point));
    byId("trial").querySelector("audio")?.play().catch(() => {}); // a browser may want another click for that
    draw();
    const names = run.neighbours[point].map((neighbour) => run.utterance[neighbour]);
    say(`Opened ${inWords(point)}. Nearest: ${names.join(", ")}`);
  }

  function factList(point) {
    const found = make("dl");
    for (const [name, text] of facts(point)) found.append(make("dt", name), make("dd", text));
    return found;
  }

  function player(point) {
    const path = run.audio[point];
    if (!path) return make("p", "No audio is known for this trial.");
    const audio = make("audio");
    audio.controls = true;
    audio.preload = "none";
    audio.addEventListener("error", () => audio.replaceWith(make("p", `The audio is not there: ${path}`, "missing")));
    audio.src = `${root}/${path.split("/").map(encodeURIComponent).join("/")}`;
    return audio;
  }

  function list(point) {
    const found = make("ol");
    for (const neighbour of run.neighbours[point]) {
      const item = make("li");
      const named = run.categories.filter((c) => ["class", "attack", "set"].includes(c.name));
      const words = named.map((c) => c.names[c.codes[neighbour]]).filter((name) => name !== UNKNOWN);
      item.append(link(neighbour), ` ${[...new Set(words)].join(", ")}`);
      found.append(item);
    }
    return found;
  }

  function link(point) {
    const button = make("button", run.utterance[point], "link");
    button.type = "button";
    button.addEventListener("click", () => {
      open(point);
      byId("trial").querySelector("h3").focus({ preventScroll: true });
    });
    return button;
  }

  // Legend and controls

  function showLegend(name) {
    groups.forEach((group) => (group.count = 0));
    groupOf.forEach((group) => (groups[group].count += 1));
    const number = run.numbers.find((n) => n.name === name);
    const listed = groups.filter((group) => group.label && group.count);
    byId("keys").replaceChildren(...(number ? rampKey(number.values) : []), ...listed.map(key));
  }

  function rampKey(values) {
    const [low, high] = range(values);
    return low <= high ? [make("span", String(low)), make("span", "", "ramp"), make("span", String(high))] : [];
  }

  function key(group) {
    const button = make("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(swatch(group), make("span", group.label), make("span", `(${group.count})`));
    button.addEventListener("click", () => {
      group.shown = !group.shown;
      button.setAttribute("aria-pressed", String(group.shown));
      at = -1;
      showTip();
      drawPoints();
      draw();
    });
    return button;
  }

  function swatch(group) {
    const density = window.devicePixelRatio || 1;
    const made = marker(group, 5, density);
    made.style.width = made.style.height = `${made.width / density}px`;
    made.setAttribute("aria-hidden", "true");
    return made;
  }

  function options(select, names) {
    select.replaceChildren(...names.map((name) => make("option", name)));
    select.closest("label").hidden = names.length < 2;
  }

  function recolour() {
    const name = byId("colour").value;
    const category = run.categories.find((c) => c.name === name);
    if (category) groupByCategory(category);
    else groupByNumber(run.numbers.find((n) => n.name === name).values);
    showLegend(name);
    at = -1;
    showTip();
    drawPoints();
    draw();
  }

  function project() {
    projection = run.projections[byId("projection").selectedIndex];
    byId("projection-note").textContent = [
      projection.name, projection.note, ...(projection.centroids ? ["centroids are numbered diamonds"] : []),
      ...(projection.far.length ? [`${projection.far.length} hollow at the border lie further away`] : []),
    ].join(", ");
    grid = makeGrid(projection);
    seeWhole();
    recolour();
  }

  function choose(number) {
    const chosen = maps[number];
    document.querySelectorAll("[data-run]").forEach((panel) => (panel.hidden = panel.dataset.run !== chosen.run));
    run = load(chosen);
    [at, opened] = [-1, -1];
    byId("trial").replaceChildren(make("p", "No trial is opened yet."));
    byId("find").value = "";
    options(byId("projection"), run.projections.map((p) => p.name));
    options(byId("colour"), [...run.categories, ...run.numbers].map((c) => c.name));
    project();
    linkPanel(chosen.run);
  }

  function setOf(point) {
    const { names, codes } = run.categories.find((c) => c.name === "set");
    return names[codes[point]];
  }

  // Trials that the panels of the run name, and that are on the map, open there; sets may share names of utterances.
  function linkPanel(name) {
    const id = (set, utterance) => JSON.stringify([set, utterance]);
    const points = new Map(run.utterance.map((utterance, point) => [id(setOf(point), utterance), point]));
    for (const cell of document.querySelectorAll("[data-run] [data-trial]:not(:has(button))")) {
      const point = points.get(id(cell.dataset.set, cell.dataset.trial));
      if (cell.closest("[data-run]").dataset.run !== name || point === undefined) continue;
      const button = link(point);
      button.addEventListener("click", () => box.scrollIntoView());
      cell.replaceChildren(button);
    }
  }

  // The points of the utterance with that name, else of the first whose name starts with it, else contains it.
  function find(text) {
    const ways = [(name) => name === text, (name) => name.startsWith(text), (name) => name.includes(text)];
    const found = ways.map((way) => run.utterance.find(way)).find((name) => name !== undefined);
    return [...run.utterance.keys()].filter((point) => run.utterance[point] === found);
  }

  // Points at what is sought: of several with one name, at the one after that which is opened.
  function showFound() {
    const text = byId("find").value.trim();
    const found = text ? find(text) : [];
    const several = found.length > 1 ? `${found.map(setOf).join(", ")}: Enter for the next` : "";
    byId("found").textContent = text && !found.length ? "not on this map" : several;
    const point = found[(found.indexOf(opened) + 1) % found.length] ?? -1;
    if (point >= 0) show(point);
    pointAt(point);
    return point;
  }

  // Pointer and keys

  function under(event) {
    return nearest(...toMap(event.offsetX, event.offsetY), REACH / scale());
  }

  function onKey(event) {
    const way = WAYS[event.key];
    const closer = { "+": ZOOM, "=": ZOOM, "-": 1 / ZOOM }[event.key];
    if (closer) return zoomAt(closer);
    if (event.key === "0") return seeWhole();
    if (!way && !["Enter", " ", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (way) step(way);
    else if (event.key === "Escape") pointAt(-1);
    else if (at >= 0) open(at);
  }

  // Moves the plane so that a point is within it.
  function show(point) {
    const [x, y] = place(point);
    if (Math.min(x, y) >= 0 && Math.max(x, y) <= size) return;
    const half = run.top / view.zoom / 2;
    look(projection.x[point] - half, projection.y[point] - half);
  }

  function step(way) {
    const from = at >= 0 ? at : opened;
    const middle = run.top / 2;
    const next = from >= 0 ? nextInDirection(from, way) : nearest(middle, middle, run.top);
    if (next < 0) return say("No trial that way.");
    show(next);
    pointAt(next);
    say(inWords(next));
  }

  function listen() {
    canvas.addEventListener("pointermove", onMove);
    canvas.addEventListener("pointerdown", onDown);
    canvas.addEventListener("wheel", onWheel, { passive: false });
    byId("closer").addEventListener("click", () => zoomAt(ZOOM));
    byId("further").addEventListener("click", () => zoomAt(1 / ZOOM));
    byId("whole").addEventListener("click", seeWhole);
    canvas.addEventListener("pointerleave", () => pointAt(-1));
    canvas.addEventListener("blur", () => pointAt(-1));
    canvas.addEventListener("keydown", onKey);
    addEventListener("pointerup", onUp);
    addEventListener("pointercancel", onUp);
    for (const name of ["touchstart", "touchmove"]) canvas.addEventListener(name, onTouch, { passive: false });
    canvas.addEventListener("click", (event) => {
      const point = drag?.moved && view.zoom > 1 ? -1 : under(event);
      if (point >= 0) open(point);
    });
    byId("run").addEventListener("change", (event) => choose(event.target.selectedIndex));
    byId("projection").addEventListener("change", project);
    byId("colour").addEventListener("change", recolour);
    byId("find").addEventListener("input", showFound);
    byId("find").form.addEventListener("submit", (event) => {
      event.preventDefault();
      const point = showFound();
      if (point >= 0) open(point);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    new ResizeObserver(resize).observe(canvas);
  }

  function resize() {
    if (canvas.clientWidth === size) return;
    size = canvas.clientWidth;
    drawPoints();
    draw();
    showTip();
  }

  byId("no-script").hidden = true;
  box.hidden = false;
  byId("run").closest("label").hidden = maps.length < 2;
  size = canvas.clientWidth;
  choose(0);
  listen();
})();
