"""Style sheet and script of the comparison page, kept as text so that the page stays one self-contained file."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root {
  color-scheme: light;
  --page: #f4f4f2; --card: #ffffff; --ink: #1b1d1f; --soft: #5c6166; --rule: #d9dbd8; --well: #e7e8e6;
  --accent: #0b6b62; --accent-ink: #ffffff; --tag: rgba(20, 22, 24, .78); --tag-ink: #ffffff; --mark: #f0f0ed;
}
@media (prefers-color-scheme: dark) {
  :root:not([data-theme=light]) {
    color-scheme: dark;
    --page: #141617; --card: #1d2022; --ink: #eceeed; --soft: #a3a9ad; --rule: #34393c; --well: #101213;
    --accent: #5cc9ba; --accent-ink: #06211e; --tag: rgba(8, 9, 10, .78); --tag-ink: #ffffff; --mark: #24282b;
  }
}
:root[data-theme=dark] {
  color-scheme: dark;
  --page: #141617; --card: #1d2022; --ink: #eceeed; --soft: #a3a9ad; --rule: #34393c; --well: #101213;
  --accent: #5cc9ba; --accent-ink: #06211e; --tag: rgba(8, 9, 10, .78); --tag-ink: #ffffff; --mark: #24282b;
}
* { box-sizing: border-box; }
html { scroll-padding-top: 5rem; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
header.top, main, footer { max-width: 100rem; margin: 0 auto; padding: 0 clamp(.75rem, 3vw, 2.5rem); }
header.top { padding-top: clamp(1.25rem, 4vw, 2.75rem); }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.3rem); line-height: 1.15; margin: 0 0 .4rem; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
.lead { color: var(--soft); margin: 0 0 1rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: -999px; top: 0; }
.skip:focus { left: 1rem; top: 1rem; z-index: 9; background: var(--card); padding: .5rem 1rem; }

.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0 0 1.25rem; padding: 0; }
.figures div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .6rem 1rem;
  flex: 1 1 9rem; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.35rem; font-weight: 650; font-variant-numeric: tabular-nums;
  letter-spacing: -.01em; }

.sheet { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
caption { text-align: left; padding: .8rem 1rem .2rem; font-weight: 650; }
th, td { padding: .45rem 1rem; text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; font-size: .84rem; vertical-align: bottom;
  border-bottom: 1px solid var(--rule); }
th:first-child { text-align: left; }
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tfoot > tr > * { border-top: 2px solid var(--rule); font-weight: 650; }
td.mark { background: var(--mark); }
.notes { color: var(--soft); font-size: .87rem; max-width: 60rem; margin: .7rem 0 1.5rem; padding-left: 1.1rem; }

.bar { display: none; position: sticky; top: 0; z-index: 5; background: var(--page);
  border-bottom: 1px solid var(--rule);
  margin: 1.25rem 0 1rem; padding: .55rem 0; flex-wrap: wrap; gap: .5rem 1.1rem; align-items: center; }
.js .bar { display: flex; }
.bar fieldset { border: 0; margin: 0; padding: 0; display: flex; align-items: center; gap: .5rem; }
.bar legend { float: left; color: var(--soft); font-size: .85rem; padding: 0; }
.seg { display: inline-flex; border: 1px solid var(--rule); border-radius: 8px; overflow: hidden;
  background: var(--card); }
.seg button, .bar > button { font: inherit; font-size: .9rem; color: var(--ink); background: var(--card); border: 0;
  padding: .32rem .75rem; cursor: pointer; min-height: 2.1rem; }
.seg button + button { border-left: 1px solid var(--rule); }
.seg button[aria-pressed=true] { background: var(--accent); color: var(--accent-ink); }
.seg button:focus-visible { outline-offset: -3px; outline-color: currentColor; }
.bar > button { border: 1px solid var(--rule); border-radius: 8px; margin-left: auto; }

article { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; margin: 0 0 1.5rem;
  padding: clamp(.75rem, 2vw, 1.25rem); }
.head { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; margin-bottom: .7rem; }
h2 { font-size: 1.08rem; margin: 0; overflow-wrap: anywhere; }
.head p { margin: 0; color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
.pick { display: none; gap: .75rem; margin-left: auto; flex-wrap: wrap; }
.js .pick { display: flex; }
.pick label { font-size: .87rem; color: var(--soft); }
select { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--rule); border-radius: 6px;
  padding: .15rem .3rem; max-width: 60vw; }

.views { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .75rem; }
.views.single { grid-template-columns: minmax(0, 1fr); }
.pane { position: relative; min-width: 0; }
.pane:not(.a):not(.b), .cap:not(.a):not(.b) { display: none; }
.pane.a { order: 1; } .pane.b { order: 2; }
.cap.a { order: 1; } .cap.b { order: 2; }
.view { background: var(--well); border-radius: 6px; overflow: auto; display: grid; max-height: 86vh;
  overscroll-behavior: auto; }
.view img { display: block; width: 100%; height: auto; max-width: none; margin: auto; }
.js .view img { width: min(100%, calc(var(--w) * 1px / var(--dpr, 1))); }
.zoomed .view img { width: calc(var(--w) * var(--zoom) * 1px / var(--dpr, 1)); image-rendering: pixelated; }
.tag { position: absolute; top: .5rem; left: .5rem; background: var(--tag); color: var(--tag-ink); font-size: .78rem;
  line-height: 1.4; padding: .1rem .5rem; border-radius: 99px; pointer-events: none; max-width: calc(100% - 1rem); }
.caps { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .25rem .75rem; margin-top: .5rem;
  font-size: .92rem; }
.caps.single { grid-template-columns: minmax(0, 1fr); }
.cap { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.cap b { font-weight: 650; }
.cap span { color: var(--soft); }
.cap span::before { content: "\\00b7\\00a0"; margin-left: .35em; }
.line, .wipe { display: none; }

.slider .views:not(.single), .flip .views:not(.single) { width: fit-content; max-width: 100%; margin: 0 auto;
  position: relative;
  grid-template-columns: minmax(0, auto); }
.slider .views:not(.single) .pane, .flip .views:not(.single) .pane { grid-area: 1 / 1; }
.slider .pane.b { clip-path: inset(0 0 0 var(--x, 50%)); }
.slider .pane.b .tag { left: auto; right: .5rem; }
.slider .views:not(.single) { cursor: ew-resize; }
.slider .views:not(.single) .line { display: block; grid-area: 1 / 1; justify-self: start; position: relative;
  z-index: 1;
  left: var(--x, 50%); width: 2px; margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .55);
    pointer-events: none; }
.slider .views:not(.single) .line::after { content: ""; position: absolute; top: 50%; left: 50%; width: 1.5rem;
  height: 1.5rem;
  margin: -.75rem; border-radius: 50%; background: #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .55); }
.slider .views:not(.single) .wipe { display: block; grid-area: 2 / 1; width: 100%; margin: 0;
  accent-color: var(--accent); }
.flip .views:not(.single) { cursor: pointer; }
.flip .pane.b { visibility: hidden; }
.flip .flipped .pane.b { visibility: visible; }
.flip .flipped .pane.a { visibility: hidden; }
.hint { display: none; color: var(--soft); font-size: .85rem; margin: 0; }
.slider .hint.for-slider, .flip .hint.for-flip { display: block; }

footer { color: var(--soft); font-size: .87rem; padding-bottom: 2.5rem; }
@media (max-width: 42rem) {
  .views, .caps { grid-template-columns: minmax(0, 1fr); }
  .pick { margin-left: 0; }
  th, td { padding: .4rem .65rem; }
  .bar { gap: .4rem .7rem; }
  .bar legend { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .seg button, .bar > button { padding: .3rem .6rem; }
  .bar > button { margin-left: 0; }
}
@media print { .bar, .pick, .skip { display: none !important; } article { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
(function () {
  var root = document.documentElement, cards = document.querySelectorAll("article");
  root.classList.add("js");
  function density() { root.style.setProperty("--dpr", window.devicePixelRatio || 1); }
  density();
  window.addEventListener("resize", density);
  document.querySelectorAll(".view img").forEach(function (img) {
    img.style.setProperty("--w", img.getAttribute("width"));
    img.draggable = false;
  });

  function group(name, apply) {
    var buttons = document.querySelectorAll("[data-" + name + "]");
    buttons.forEach(function (button) {
      button.addEventListener("click", function () {
        buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
        apply(button.getAttribute("data-" + name));
      });
    });
  }
  group("mode", function (mode) {
    document.body.classList.remove("side", "slider", "flip");
    document.body.classList.add(mode);
    document.querySelectorAll(".views").forEach(function (views) {
      views.classList.remove("flipped");
      if (mode === "flip") { views.setAttribute("tabindex", "0"); } else { views.removeAttribute("tabindex"); }
    });
  });
  group("zoom", function (zoom) {
    document.body.classList.toggle("zoomed", zoom !== "fit");
    document.body.style.setProperty("--zoom", zoom === "fit" ? "1" : zoom);
  });

  var theme = document.getElementById("theme"), dark = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; }
  function label() { theme.textContent = isDark() ? "Light page" : "Dark page"; }
  theme.addEventListener("click", function () { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  label();

  cards.forEach(function (card) {
    var views = card.querySelector(".views"), wipe = card.querySelector(".wipe");
    var panes = card.querySelectorAll(".pane"), caps = card.querySelectorAll(".cap"), boxes =
    card.querySelectorAll(".view");
    var echo = false;
    boxes.forEach(function (box) {
      box.addEventListener("scroll", function () {
        if (echo) { return; }
        echo = true;
        boxes.forEach(function (other) {
          if (other !== box) { other.scrollLeft = box.scrollLeft; other.scrollTop = box.scrollTop; }
        });
        window.requestAnimationFrame(function () { echo = false; });
      }, { passive: true });
    });
    card.querySelectorAll("select").forEach(function (select) {
      var side = select.getAttribute("data-side");
      select.addEventListener("change", function () {
        var other = side === "a" ? "b" : "a";
        [panes, caps].forEach(function (list) {
          var chosen = list[Number(select.value)], old = null;
          list.forEach(function (item) { if (item.classList.contains(side)) { old = item; } });
          if (old === chosen) { return; }
          if (chosen.classList.contains(other)) { old.classList.add(other); chosen.classList.remove(other); }
          old.classList.remove(side);
          chosen.classList.add(side);
        });
        card.querySelectorAll("select").forEach(function (each) {
          panes.forEach(function (pane, i) {
            if (pane.classList.contains(each.getAttribute("data-side"))) { each.value = String(i); }
          });
        });
      });
    });
    if (!wipe) { return; }
    function move(percent) {
      percent = Math.max(0, Math.min(100, percent));
      card.style.setProperty("--x", percent + "%");
      wipe.value = String(percent);
    }
    wipe.addEventListener("input", function () { move(Number(wipe.value)); });
    views.addEventListener("pointermove", function (event) {
      if (!document.body.classList.contains("slider") || event.pointerType !== "mouse") { return; }
      var box = views.getBoundingClientRect();
      move(100 * (event.clientX - box.left) / box.width);
    });
    function flip() { if (document.body.classList.contains("flip")) { views.classList.toggle("flipped"); } }
    views.addEventListener("click", flip);
    views.addEventListener("keydown", function (event) {
      if (document.body.classList.contains("flip") && (event.key === " " || event.key === "Enter")) {
        event.preventDefault();
        flip();
      }
    });
  });
})();
"""
