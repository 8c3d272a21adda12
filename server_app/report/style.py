"""The page's style and its few lines of script."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1d1f24;--soft:#5b6069;--line:#e2dfd7;--line2:#efece5;
  --code:#f3f1eb;--qnn:#5a45c9;--logistic:#b9660b;--mlp:#0b7f76;--plain:#8b8f98;--bad:#b3261e;--good:#2c7a3f;
  --c0:#4a74b8;--c1:#e0a648;--c2:#62a06f;--c3:#c0605a;--c4:#8f74b5;--c5:#8f7257;--c6:#d48db5;--c7:#858c96;
  --c8:#b5b350;--c9:#50b0be;--g-data:#dbe7f6;--g-data-l:#4a74b8;--g-weight:#e7e2fb;--g-weight-l:#5a45c9;
  --g-mixed:#d9efec;--g-mixed-l:#0b7f76;--g-fixed:#f0eee8;--g-fixed-l:#8b8f98}
@media (prefers-color-scheme:dark){:root{--paper:#15161a;--card:#1d1f25;--ink:#e9e7e2;--soft:#a0a4ae;--line:#33363e;
  --line2:#282b32;--code:#24272e;--qnn:#a596ff;--logistic:#f0a04b;--mlp:#4cc4b8;--plain:#7d828d;--bad:#ff8a80;
  --good:#7fd094;--c0:#6f9ae0;--c1:#e6b35c;--c2:#7cbb89;--c3:#d97c76;--c4:#ab92d0;--c5:#b0917a;--c6:#dfa3c6;
  --c7:#9aa1ab;--c8:#c6c468;--c9:#6bc4d1;--g-data:#22324a;--g-data-l:#6f9ae0;--g-weight:#2e2a4d;--g-weight-l:#a596ff;
  --g-mixed:#1c3a38;--g-mixed-l:#4cc4b8;--g-fixed:#292c33;--g-fixed-l:#7d828d}
}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Liberation Sans",sans-serif;font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main,header,nav,footer{max-width:1120px;margin:0 auto;padding:0 28px}
header{padding-top:52px}
h1{font:600 clamp(2rem,5vw,3.1rem)/1.08 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,"DejaVu Serif",serif;
  margin:.1em 0 .25em;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font:600 1.55rem/1.2 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,"DejaVu Serif",serif;margin:0 0 .45em}
h3{font-size:1rem;font-weight:600;margin:0}
.backends{margin-top:1.8em}
p{margin:0 0 .8em}
.kicker{color:var(--soft);margin:0;font-size:.95rem}
.facts{color:var(--soft);margin:0}
.runid{color:var(--soft);font-size:.85rem;margin:.3em 0 0}
.stop{color:var(--bad);margin:.4em 0 0;white-space:pre-wrap}
.status{font-weight:600;color:var(--ink);border:1px solid var(--line);border-radius:4px;padding:1px 8px;
  margin-right:6px;background:var(--card)}
.status.finished{color:var(--good)}
.status.failed{color:var(--bad)}
nav{margin-top:22px;font-size:.9rem}
nav a{color:var(--soft);margin-right:18px;text-decoration:none;white-space:nowrap}
nav a:hover{color:var(--ink);text-decoration:underline}
section{margin:0;padding:40px 0 6px;border-top:1px solid var(--line);margin-top:34px}
section:first-child{border-top:0;margin-top:0;padding-top:34px}
.lead{color:var(--soft);max-width:76ch}
.note,.empty{color:var(--soft);font-size:.9rem;max-width:86ch;margin-top:1em}
.warn{color:var(--bad)}
.verdict{font:400 1.3rem/1.4 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,"DejaVu Serif",serif;
  max-width:58ch;margin-bottom:1em}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--line);stroke-width:1}
svg .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.line.qnn,.whisker.qnn,.line.trained{stroke:var(--qnn)}
.line.logistic,.whisker.logistic{stroke:var(--logistic)}
.line.mlp,.whisker.mlp{stroke:var(--mlp)}
.line.logistic{stroke-dasharray:7 4}
.line.mlp{stroke-dasharray:1.5 4.5}
.line.received{stroke:var(--plain);stroke-dasharray:4 3;stroke-width:1.6}
.dot.qnn,.dot.trained{fill:var(--qnn)}
.dot.logistic{fill:var(--logistic)}
.dot.mlp{fill:var(--mlp)}
.dot.received{fill:var(--plain)}
.whisker{stroke-width:5;stroke-linecap:round;opacity:.38}
.bar{fill:var(--plain)}
.bar.up{fill:var(--c0)}
.bar.down{fill:var(--c9)}
.band{fill:var(--qnn);stroke:none}
.band.outer{opacity:.13}
.band.inner{opacity:.22}
.guide{stroke:var(--soft);stroke-width:1;visibility:hidden}
.cards{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:6px 22px 10px}
.card,.ruler{display:grid;grid-template-columns:210px 150px minmax(220px,1fr) 280px;gap:18px;align-items:center}
.card{padding:15px 0;border-bottom:1px solid var(--line2)}
.card:nth-last-child(2){border-bottom:0}
.card .big{font-size:1.75rem;font-weight:600;line-height:1.1;margin:0}
.card .big span{display:block;font-size:.78rem;font-weight:400;color:var(--soft)}
.card.qnn .big,.card.qnn h3{color:var(--qnn)}
.interval p{margin:0;text-align:center;font-size:.8rem;color:var(--soft)}
.card dl{display:grid;grid-template-columns:1fr 1fr 1fr;gap:10px;margin:0}
.card dt{font-size:.75rem;color:var(--soft);line-height:1.2;min-height:2.4em;display:flex;align-items:end}
.card dd{margin:0;font-weight:600}
.ruler svg{grid-column:3}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px;background:var(--plain);
  border:1px solid transparent}
.swatch.qnn{background:var(--qnn)}
.swatch.logistic{background:var(--logistic)}
.swatch.mlp{background:var(--mlp)}
.figures{display:grid;grid-template-columns:repeat(6,1fr);gap:20px;margin:0}
.figures dt{color:var(--soft);font-size:.85rem}
.figures dd{margin:0;font-size:1.35rem;font-weight:600;line-height:1.25}
.figures p{color:var(--soft);font-size:.78rem;margin:0;line-height:1.3}
figure{margin:0}
figcaption{margin-bottom:8px;font-size:.9rem}
figcaption>b{display:block}
.legend span{margin-right:16px;white-space:nowrap;color:var(--soft);font-size:.88rem}
.legend span b{color:var(--ink);font-weight:600}
.legend{line-height:1.7}
.key{display:inline-block;width:22px;height:0;border-top:3px solid var(--plain);vertical-align:middle;
  margin-right:6px}
.key.qnn,.key.trained{border-color:var(--qnn)}
.key.logistic{border-top-style:dashed;border-color:var(--logistic)}
.key.mlp{border-top-style:dotted;border-color:var(--mlp)}
.key.received{border-top:2px dashed var(--plain)}
.two{display:grid;grid-template-columns:1fr 1fr;gap:26px 40px}
.two>*{min-width:0}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:26px}
.small figcaption span{color:var(--soft);font-size:.82rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(225px,1fr));gap:24px 26px}
.panels figcaption{margin-bottom:2px;font-size:.85rem;line-height:1.35}
.panels b,.panels span{display:block;overflow-wrap:anywhere}
.panels span{color:var(--soft);font-size:.8rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;color:var(--soft);font-size:.85rem;padding-bottom:6px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line2);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:.82rem;white-space:nowrap;vertical-align:bottom}
td:first-child{overflow-wrap:anywhere;min-width:10ch}
.n{text-align:right;padding-right:0;padding-left:14px;white-space:nowrap}
.bars td{vertical-align:middle}
.bars td:nth-child(2){width:56%}
.strip{height:16px}
.bars caption{display:none}
details{margin-top:20px}
summary{cursor:pointer;color:var(--soft);padding:6px 0}
summary:hover{color:var(--ink)}
code,pre{font:.87em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
  overflow-wrap:anywhere}
pre{background:var(--code);border:1px solid var(--line);border-radius:6px;padding:12px 14px;margin:6px 0 18px;
  white-space:pre-wrap}
.command h3{display:flex;align-items:center;gap:12px}
.copy{font:inherit;font-size:.8rem;font-weight:400;border:1px solid var(--line);background:var(--card);
  color:var(--soft);border-radius:4px;padding:1px 9px;cursor:pointer}
.config{columns:3;column-gap:36px}
.config>div{break-inside:avoid;margin-bottom:22px}
.config dl{margin:6px 0 0}
.config dl div{display:flex;justify-content:space-between;gap:14px;border-bottom:1px solid var(--line2);padding:3px 0;
  font-size:.88rem}
.config dt{color:var(--soft)}
.config dd{margin:0;text-align:right;overflow-wrap:anywhere}
.config .changed dt,.config .changed dd{color:var(--ink);font-weight:600}
.config small{color:var(--soft);font-weight:400}
.facts-list{display:flex;flex-wrap:wrap;gap:6px 30px;margin:0 0 18px}
.facts-list dt{color:var(--soft);font-size:.82rem}
.facts-list dd{margin:0;font-weight:600}
.glossary{display:grid;grid-template-columns:1fr 1fr;gap:14px 40px;margin:0}
.glossary dt{font-weight:600}
.glossary dd{margin:0;color:var(--soft);font-size:.92rem}
.circuit .wire,.circuit .link{stroke:var(--soft);stroke-width:1.2;fill:none}
.circuit .control{fill:var(--soft)}
.circuit .target{fill:var(--paper);stroke:var(--soft);stroke-width:1.2}
.circuit .barrier{stroke:var(--line);stroke-dasharray:3 3;stroke-width:2}
.circuit .gate{stroke-width:1.1}
.circuit .name{fill:var(--ink);font-weight:600;font-size:12px}
.circuit .angle{font-size:10.5px;fill:var(--ink)}
.g-data{fill:var(--g-data);stroke:var(--g-data-l);background:var(--g-data);border-color:var(--g-data-l)}
.g-weight{fill:var(--g-weight);stroke:var(--g-weight-l);background:var(--g-weight);border-color:var(--g-weight-l)}
.g-mixed{fill:var(--g-mixed);stroke:var(--g-mixed-l);background:var(--g-mixed);border-color:var(--g-mixed-l)}
.g-fixed{fill:var(--g-fixed);stroke:var(--g-fixed-l);background:var(--g-fixed);border-color:var(--g-fixed-l)}
#tip{position:fixed;pointer-events:none;background:var(--card);border:1px solid var(--line);border-radius:6px;
  padding:6px 10px;font-size:.82rem;box-shadow:0 4px 16px rgb(0 0 0/.14);visibility:hidden;z-index:9}
#tip td,#tip th{border:0;padding:1px 0;font-size:.82rem}
#tip td+td{text-align:right;padding-left:14px;font-weight:600}
footer{color:var(--soft);font-size:.85rem;padding-top:36px;padding-bottom:60px}
@media (max-width:980px){.card,.ruler{grid-template-columns:1fr auto;gap:8px 18px}
.card .big{text-align:right}
.card .interval,.card dl,.ruler svg{grid-column:1/-1}
.card dt{min-height:0}
.config{columns:2}
.figures{grid-template-columns:repeat(3,1fr)}
}
@media (max-width:700px){main,header,nav,footer{padding-left:18px;padding-right:18px}
header{padding-top:30px}
.two,.glossary{grid-template-columns:minmax(0,1fr)}
.config{columns:1}
.figures{grid-template-columns:repeat(2,1fr)}
.cards{padding:2px 14px 8px}
.bars th:nth-child(n+4),.bars td:nth-child(n+4){display:none}
.bars td:nth-child(2){width:50%}
.panels{grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.stackwide{min-width:560px}
}
@media print{
:root{color-scheme:light}
@page{margin:14mm}
body{font-size:9.5pt;background:#fff}
nav,.copy,#tip{display:none}
header{padding-top:0}
main,header,footer{max-width:none;padding-left:0;padding-right:0}
section,section:first-child{padding-top:14px;margin-top:12px}
h2{break-after:avoid}
.lead{break-after:avoid}
figure,.card,.config>div,.glossary>div{break-inside:avoid}
.cards{break-inside:avoid}
.card,.ruler{grid-template-columns:130px 84px minmax(150px,1fr) 210px;gap:12px}
.card .big{text-align:left;font-size:1.4rem}
.card .interval,.card dl{grid-column:auto}
.ruler svg{grid-column:3}
.panels{grid-template-columns:repeat(4,1fr)}
.small{grid-template-columns:repeat(5,1fr);gap:14px}
.figures{grid-template-columns:repeat(6,1fr);gap:12px}
.figures dd{font-size:1.1rem}
.scroll{overflow:visible}
table{font-size:7.8pt}
th{white-space:normal;font-size:7.4pt}
.n{padding-left:6px}
td{padding-top:3px;padding-bottom:3px}
.circuit{min-width:0!important}
}
"""

SCRIPT = """
(function () {
  var tip = document.createElement('div');
  tip.id = 'tip';
  tip.setAttribute('aria-hidden', 'true');
  document.body.appendChild(tip);
  document.querySelectorAll('svg[data-chart]').forEach(function (svg) {
    var data = JSON.parse(svg.dataset.chart), guide = svg.querySelector('.guide');
    function nearest(x) {
      var best = 0;
      data.x.forEach(function (at, i) { if (Math.abs(at - x) < Math.abs(data.x[best] - x)) best = i; });
      return best;
    }
    function show(event) {
      var box = svg.getBoundingClientRect();
      var at = nearest((event.clientX - box.left) * svg.viewBox.baseVal.width / box.width);
      guide.setAttribute('x1', data.x[at]);
      guide.setAttribute('x2', data.x[at]);
      guide.style.visibility = 'visible';
      var table = document.createElement('table');
      data.head.forEach(function (name, i) {
        var row = table.insertRow();
        row.insertCell().textContent = name;
        row.insertCell().textContent = data.rows[at][i];
      });
      tip.textContent = '';
      tip.appendChild(table);
      tip.style.visibility = 'visible';
      tip.style.left = Math.max(8, Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8)) + 'px';
      tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 14) + 'px';
    }
    svg.addEventListener('pointermove', show);
    svg.addEventListener('pointerdown', show);
    svg.addEventListener('pointerleave', function () {
      guide.style.visibility = tip.style.visibility = 'hidden';
    });
  });
  document.querySelectorAll('.copy').forEach(function (button) {
    button.addEventListener('click', function () {
      var text = button.closest('.command').querySelector('code').textContent;
      navigator.clipboard.writeText(text).then(
        function () { button.textContent = 'copied'; },
        function () { button.textContent = 'select and copy'; });
    });
  });
  addEventListener('beforeprint', function () {
    document.querySelectorAll('details').forEach(function (one) { one.open = true; });
  });
})();
"""
