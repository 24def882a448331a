"""How the page looks: system fonts, neutral on light and on dark paper, no table wider than its frame."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1c1c21; --faint: #6a6a72; --line: #e1e1dc;
  --blue: #4477aa; --error: #b3372a; --warning: #a86a00; --note: #4477aa;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181b; --card: #1f2024; --ink: #e6e6e8; --faint: #9a9aa3; --line: #33353b;
    --blue: #7aa7d6; --error: #ef7a6b; --warning: #dfa24a; --note: #7aa7d6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
h1 { margin: 0; font-size: 1.5rem; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 0.75rem; font-size: 1.15rem; font-weight: 650; }
h3 { margin: 1.5rem 0 0.5rem; font-size: 0.95rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0.4rem 0 0.8rem; max-width: 60rem; }
.faint, figcaption, caption { color: var(--faint); font-size: 0.87rem; }
code { font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0;
}
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 0.7rem 0.9rem; }
.tile b { display: block; font-size: 1.3rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: 0.82rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.65rem; text-align: left; vertical-align: middle; white-space: nowrap; }
th { color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--line); }
tr + tr td { border-top: 1px solid var(--line); }
td.number, th.number { text-align: right; }
td.name { font-weight: 500; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
.bars { display: block; width: 128px; height: 26px; color: var(--blue); }
.swatch { display: inline-block; width: 2.4em; height: 1.1em; border: 1px solid var(--line); vertical-align: -0.2em; }
.badge {
  display: inline-block; padding: 0 0.5em; border: 1px solid currentColor; border-radius: 1em; font-size: 0.78rem;
  line-height: 1.5; white-space: nowrap;
}
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
.finding { padding: 0.8rem 1rem; margin-bottom: 0.6rem; border-left-width: 4px; }
.finding.error { border-left-color: var(--error); } .finding.warning { border-left-color: var(--warning); }
.finding.note { border-left-color: var(--note); }
.finding > * { color: var(--ink); } .finding > .faint { color: var(--faint); } .finding p { margin: 0.3rem 0 0; }
.finding.error .badge { color: var(--error); } .finding.warning .badge { color: var(--warning); }
.finding.note .badge { color: var(--note); }
.finding b { margin-left: 0.5em; }
details { margin-top: 0.4rem; } summary { cursor: pointer; color: var(--faint); font-size: 0.87rem; }
details ul { margin: 0.4rem 0 0; padding-left: 1.2rem; max-height: 18rem; overflow-y: auto; font-size: 0.84rem; }
details li { overflow-wrap: anywhere; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 0.9rem; }
figure { margin: 0; padding: 0.75rem; min-width: 0; }
figcaption { margin-bottom: 0.5rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.views { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px; margin-top: 4px; }
.views img { display: block; width: 100%; background: var(--line); border-radius: 3px; }
.views + .faint { margin-top: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 0.9rem; }
img.plot { display: block; width: 100%; max-width: 48rem; height: auto; }
.plots.wide { grid-template-columns: 1fr; } .wide img.plot { max-width: 64rem; }
.key i { display: inline-block; width: 1.4em; height: 3px; margin: 0 0.4em 0.2em 0; border-radius: 2px; }
"""
