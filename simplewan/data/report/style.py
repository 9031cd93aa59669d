"""The look of the page: one style sheet, light or dark as the reader's system is. Imports nothing."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1d1f23; --faint: #62676f; --line: #e2e3e0;
  --bar: #4a78c0; --crop: #ff8a1f; --warn: #9a5200; --warn-paper: #fdf1e1; --good: #2e6b3a;
  --shade: rgb(20 22 26 / .55);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131417; --card: #1b1d21; --ink: #e4e5e2; --faint: #9a9fa8; --line: #2e3137;
    --bar: #6f9be0; --crop: #ffa552; --warn: #f0b35f; --warn-paper: #33260f; --good: #86c795;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 64px; }
h1, h2, h3, h4, p, ul, ol, figure { margin: 0; }
h1 { font-size: 26px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 19px; line-height: 1.3; font-weight: 650; margin: 44px 0 12px; }
h3 { font-size: 15px; font-weight: 650; margin: 24px 0 8px; }

h2 small, h3 small { font-weight: 400; color: var(--faint); font-size: 14px; margin-left: 8px; }
a { color: inherit; text-decoration-color: var(--faint); text-underline-offset: 3px; }
ul, ol { padding-left: 20px; }
.faint { color: var(--faint); }
.lead { margin-top: 12px; color: var(--faint); max-width: 110ch; }
.name {
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace;
  unicode-bidi: isolate;
}
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 18px; font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 10px; margin-top: 20px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--faint); font-size: 13px; }
.tile.warn b { color: var(--warn); }
.card.warn { border-left: 3px solid var(--warn); }
.card { padding: 14px 16px; margin-top: 10px; }
.card > h3:first-child, .card > h4:first-child { margin-top: 0; }
.card p + ul, .card p + .table, .card h3 + p { margin-top: 2px; }
.card li { margin-top: 2px; }
.remedy { color: var(--good); }
details { margin-top: 6px; }
summary { cursor: pointer; color: var(--faint); font-size: 14px; width: fit-content; max-width: 100%; }
summary:hover { color: var(--ink); }
details > ul, details > ol, details > .table { margin-top: 6px; }
.badge {
  display: inline-block; font-size: 12px; line-height: 18px; padding: 0 7px; border-radius: 9px; white-space: nowrap;
  color: var(--warn); background: var(--warn-paper);
}
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 10px; }
.charts .card { margin-top: 0; }
.charts h3, .half h3 { margin: 0 0 8px; }
svg, img { display: block; max-width: 100%; height: auto; }
.bars text { font-size: 12.5px; fill: var(--ink); }
.bars text.label { text-anchor: end; fill: var(--faint); }
.bars rect { fill: var(--bar); }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 10px; }
.halves { margin-top: 10px; }
.halves .card { margin-top: 0; }
.clip header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 10px; }
.clip h4 { font-weight: 600; font-size: 13px; }
.clip h4 .name { font-weight: 600; }
.clip .facts { color: var(--faint); font-size: 13.5px; }
.body { display: flex; flex-wrap: wrap; gap: 10px 16px; margin-top: 10px; }
.pictures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 10px 12px; max-width: 100%; }
.pictures svg, .twin img { border-radius: 3px; }
.words { flex: 1 1 300px; min-width: 0; max-width: 90ch; }
.words ol { margin-top: 4px; }
.outside { fill: var(--shade); }
.crop { fill: none; stroke: var(--crop); stroke-width: 2; }
.whole { fill: var(--line); }
.used { fill: var(--bar); }
.between { stroke: var(--card); stroke-width: 4; }
.missing {
  display: grid; place-items: center; width: 168px; height: 95px; border: 1px dashed var(--line); border-radius: 3px;
  color: var(--faint); font-size: 13px; text-align: center; padding: 6px;
}
.groups { display: flex; flex-wrap: wrap; gap: 10px; }
.groups .card { margin-top: 0; }
.groups + .card, .groups + details { margin-top: 10px; }
.twins { display: flex; flex-wrap: wrap; gap: 12px 16px; margin-top: 8px; }
.twin { width: 190px; max-width: 100%; }
.twin figcaption { margin-top: 4px; font-size: 13px; line-height: 1.4; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-top: 1px solid var(--line); }
th { font-weight: 500; color: var(--faint); font-size: 13px; border-top: 0; }
.number { width: 60px; min-width: 0; }
.captions td:nth-child(3) { width: 40%; }
td:first-child:not(.number) { width: 30%; min-width: 12ch; }
td.facts { white-space: nowrap; color: var(--faint); }
footer { margin-top: 48px; color: var(--faint); font-size: 13px; }
@media (max-width: 700px) {
  main { padding: 20px 14px 48px; }
  h2 { margin-top: 36px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  td.facts { white-space: normal; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
