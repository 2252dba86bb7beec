// The page's own script. Charts and the viewer's pan and zoom are Bokeh's; this part fills them, and filters the gallery.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(at(id).textContent);

  for (const chart of read("plots")) Bokeh.embed.embed_item(chart);

  // ---- gallery -------------------------------------------------------------------------------------------------
  const gallery = at("gallery"), cards = [...gallery.children], controls = ["find", "class", "show", "order"].map(at).filter(Boolean);
  const [find, ofClass, show, order] = ["find", "class", "show", "order"].map(at);  // no class where none is predicted
  const facts = new Map(cards.map((card) => [card, {...card.dataset, flags: card.dataset.flags.split("|")}]));
  const byId = (a, b) => (facts.get(a).order < facts.get(b).order ? -1 : facts.get(a).order > facts.get(b).order ? 1 : 0);
  const by = (key, sign) => (a, b) => sign * (facts.get(a)[key] - facts.get(b)[key]) || byId(a, b);
  const orders = {order: byId, probability: by("probability", 1), spread: by("spread", -1)};
  let shown = cards;
  const update = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (card) => {
      const {text, predicted, label, verdict, flags} = facts.get(card);
      return (!ofClass?.value || predicted === ofClass.value || label === ofClass.value) &&
        (!show.value || verdict === show.value || flags.includes(show.value)) &&
        words.every((word) => text.includes(word));
    };
    const sorted = [...cards].sort(orders[order.value]);
    for (const card of cards) card.hidden = !fits(card);
    if (sorted.some((card, index) => card !== gallery.children[index])) gallery.append(...sorted);
    shown = sorted.filter((card) => !card.hidden);
    at("shown").textContent = `${shown.length} of ${cards.length} slides`;
    at("none").hidden = shown.length > 0;
  };
  at("controls").hidden = false;
  for (const control of controls) for (const kind of ["input", "change"]) control.addEventListener(kind, update);
  at("controls").addEventListener("reset", () => setTimeout(update));
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  update();

  // ---- viewer --------------------------------------------------------------------------------------------------
  const dialog = at("viewer"), stage = at("viewer-plot"), cardOf = new Map(cards.map((card) => [card.dataset.slide, card]));
  const [layer, opacity, marks] = ["layer", "opacity", "marks"].map(at);
  const waiting = new Map();
  let plot = null, parts = null, slide = null, opener = null, current = "";

  // called by the files beside the page, where the pictures are not in it
  window.showSlide = (name, content) => { waiting.get(name)?.(content); waiting.delete(name); };

  const load = (name) => {
    const inline = document.querySelector(`script[data-slide="${CSS.escape(name)}"]`);
    if (inline) return Promise.resolve(JSON.parse(inline.textContent));
    const folder = dialog.dataset.beside;
    if (!folder) return Promise.resolve(null);
    return new Promise((resolve) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `${folder}/${encodeURIComponent(name)}.js`;
      script.onload = () => script.remove();
      script.onerror = () => { script.remove(); waiting.delete(name); resolve(null); };
      document.head.append(script);
    });
  };

  const prepare = async () => {
    if (parts) return;
    const manager = await Bokeh.embed.embed_item(read("viewer-item"));
    const document_ = Bokeh.documents.at(-1);
    plot = document_.get_model_by_name("viewer");
    parts = Object.fromEntries(["base", "layer", "marks", "layer-picture", "mark-halo", "mark-boxes", "mark-names"]
      .map((name) => [name, document_.get_model_by_name(name)]));
    return manager;
  };

  const limits = () => ({w: slide.width * slide.um_per_px * 1e-6, h: slide.height * slide.um_per_px * 1e-6});
  const setRange = (x0, x1, y0, y1) => { plot.x_range.setv({start: x0, end: x1}); plot.y_range.setv({start: y0, end: y1}); };
  const fit = () => {
    if (!slide) return;
    const {w, h} = limits(), box = stage.getBoundingClientRect();
    const per = Math.max(w / box.width, h / box.height) * 1.04, half = [per * box.width / 2, per * box.height / 2];
    setRange(w / 2 - half[0], w / 2 + half[0], h / 2 - half[1], h / 2 + half[1]);
  };
  const zoom = (factor) => {
    const {x_range: x, y_range: y} = plot, mid = [(x.start + x.end) / 2, (y.start + y.end) / 2];
    const half = [(x.end - x.start) / 2 * factor, (y.end - y.start) / 2 * factor];
    setRange(mid[0] - half[0], mid[0] + half[0], mid[1] - half[1], mid[1] + half[1]);
  };
  const pan = (right, up) => {
    const {x_range: x, y_range: y} = plot, dx = right * (x.end - x.start), dy = up * (y.end - y.start);
    setRange(x.start + dx, x.end + dx, y.start + dy, y.end + dy);
  };
  const setOpacity = () => {
    const percent = Number(opacity.value);
    at("opacity-value").textContent = `${percent} %`;
    if (parts) parts["layer-picture"].glyph.global_alpha = {value: percent / 100};
  };
  const setLayer = () => {
    const chosen = slide.layers[Number(layer.value) || 0], {w, h} = limits();
    parts.layer.data = {url: [chosen.image], w: [w], h: [h]};
    at("ramp").style.background = `linear-gradient(90deg, ${chosen.ramp.join(", ")})`;
    at("low").textContent = chosen.low;
    at("high").textContent = chosen.high;
  };
  const setMarks = () => {
    for (const name of ["mark-halo", "mark-boxes", "mark-names"]) parts[name].visible = marks.checked;
  };
  const fill = () => {
    const {w, h} = limits(), unit = slide.um_per_px * 1e-6;
    parts.base.data = {url: [slide.base], w: [w], h: [h]};
    const boxes = slide.marks.map((mark) => mark.box);
    parts.marks.data = {
      left: boxes.map((box) => box[0] * unit), right: boxes.map((box) => box[2] * unit),
      top: boxes.map((box) => h - box[1] * unit), bottom: boxes.map((box) => h - box[3] * unit),
      name: slide.marks.map((mark) => mark.name),
    };
    layer.replaceChildren(...slide.layers.map((one, index) => new Option(one.title, index)));
    const out = Object.entries(slide.left_out).map(([name, count]) => `${count} ${name}`);
    at("hatched").textContent = out.length ? `Hatched: tiles not judged (${out.join(", ")}).` : "";
    setLayer(); setMarks(); setOpacity(); fit();
  };

  const neighbours = (name) => {
    const index = shown.findIndex((card) => card.dataset.slide === name);
    return index < 0 ? [null, null] : [shown[index - 1], shown[index + 1]];
  };
  const open = async (name) => {
    const card = cardOf.get(name);
    current = name;
    at("viewer-title").textContent = card.querySelector("h3").textContent;
    at("slide-facts").replaceChildren(...[...card.querySelectorAll(".verdict, .flags, dl")].map((part) => part.cloneNode(true)));
    neighbours(name).forEach((found, index) => {
      const button = at(index ? "next" : "previous");
      button.disabled = !found;
      button.dataset.slide = found ? found.dataset.slide : "";
      button.title = found ? found.querySelector("h3").textContent : "";
    });
    const index = shown.indexOf(card);
    at("place").textContent = index < 0 ? "" : `${index + 1} of ${shown.length}`;
    if (!dialog.open) { opener = document.activeElement; dialog.showModal(); at("stage").focus(); }
    const content = await load(name);
    if (current !== name) return;
    const usable = Boolean(content && content.base);
    at("no-picture").hidden = usable;
    at("map-controls").hidden = at("zoom").hidden = !usable;
    stage.style.visibility = usable ? "visible" : "hidden";
    slide = usable ? content : null;
    if (usable) { await prepare(); if (current === name) fill(); }
    dialog.dataset.ready = name;
    at("said").textContent = `${at("viewer-title").textContent}, ${at("place").textContent}`;
  };
  const route = () => {
    const name = location.hash.startsWith("#slide/") ? decodeURIComponent(location.hash.slice(7)) : "";
    if (cardOf.has(name)) open(name);
    else if (dialog.open) dialog.close();
  };
  const go = (name) => { if (name) location.replace(`#slide/${encodeURIComponent(name)}`); };

  window.addEventListener("hashchange", route);
  dialog.addEventListener("close", () => {
    current = "";
    if (location.hash.startsWith("#slide/")) history.replaceState(null, "", "#slides");
    opener?.focus({preventScroll: false});
  });
  at("close").addEventListener("click", () => dialog.close());
  for (const id of ["previous", "next"]) at(id).addEventListener("click", () => go(at(id).dataset.slide));
  at("zoom-in").addEventListener("click", () => zoom(1 / 1.5));
  at("zoom-out").addEventListener("click", () => zoom(1.5));
  at("zoom-fit").addEventListener("click", fit);
  opacity.addEventListener("input", setOpacity);
  layer.addEventListener("change", setLayer);
  marks.addEventListener("input", setMarks);
  window.addEventListener("resize", () => { if (dialog.open) fit(); });
  const keys = {
    ArrowLeft: () => pan(-0.15, 0), ArrowRight: () => pan(0.15, 0), ArrowUp: () => pan(0, 0.15), ArrowDown: () => pan(0, -0.15),
    "+": () => zoom(1 / 1.5), "=": () => zoom(1 / 1.5), "-": () => zoom(1.5), 0: fit,
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n" || event.key === "p") { go(at(event.key === "n" ? "next" : "previous").dataset.slide); return; }
    if (event.target !== at("stage") || !slide || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  route();
  document.documentElement.dataset.ready = "yes";
})();
