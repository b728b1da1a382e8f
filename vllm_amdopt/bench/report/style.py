"""The style sheet and the script of the HTML page; the page is whole without the script."""

STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--paper:#ffffff;--wash:#f5f7f9;--rule:#dde2e8;--link:#0b5cad;
--good:#0a6b3d;--good-wash:#e5f5ec;--bad:#b3261e;--bad-wash:#fdebea;--calm:#0b5cad;
--calm-wash:#e8f1fb;--open:#7a5200;--open-wash:#fdf3dc;--arm0:#66717f;--arm1:#0b6fb8;
--arm2:#b4500f;--arm3:#6a3fa0;--limit:#b3261e;
--part0:#9aa5b1;--part1:#5b6675;--part2:#c9a227;--part3:#0b6fb8;--part4:#58a6d8;--part5:#b4500f;
--part6:#e08a4a;--part7:#2f8f5b;--part8:#d5dae0}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9ef;--soft:#9aa6b4;--paper:#14181d;
--wash:#1c2229;--rule:#333c46;--link:#78b7f2;--good:#5fd08f;--good-wash:#12301f;--bad:#ff8a80;
--bad-wash:#3a1a18;--calm:#78b7f2;--calm-wash:#14283c;--open:#f0c463;--open-wash:#33290f;
--arm0:#9aa6b4;--arm1:#58b0f0;--arm2:#f09a5c;--arm3:#b99aea;--limit:#ff8a80}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 60px}
header h1{font-size:1.7rem;line-height:1.2;margin:0;overflow-wrap:anywhere}
header p{color:var(--soft);margin:.3em 0 1em}
h2{font-size:1.25rem;margin:0 0 .6em}
h3{font-size:1rem;margin:1.4em 0 .5em}
section[id]{padding-top:14px;margin-top:26px;border-top:1px solid var(--rule)}
a{color:var(--link)}
.synthetic{border:2px solid var(--open);color:var(--open);font-weight:650;
padding:10px 16px;border-radius:8px;margin-bottom:14px;
background:repeating-linear-gradient(135deg,var(--open-wash) 0 14px,var(--wash) 14px 28px)}
.banner{border-left:6px solid var(--soft);background:var(--wash);padding:14px 20px;margin:0 0 14px;
border-radius:0 8px 8px 0}
.banner h2{font-size:1.35rem;margin:.25em 0 .2em;overflow-wrap:anywhere}
.banner p{margin:0}
.badge{display:inline-block;font-size:.74rem;font-weight:700;letter-spacing:.05em;
text-transform:uppercase;padding:1px 10px;border-radius:99px;color:var(--paper);
background:var(--soft)}
.banner.passed,.banner.better{border-color:var(--good);background:var(--good-wash)}
.banner.passed .badge,.banner.better .badge{background:var(--good)}
.banner.failed,.banner.regression,.banner.invalid{border-color:var(--bad);background:var(--bad-wash)}
.banner.failed .badge,.banner.regression .badge,.banner.invalid .badge{background:var(--bad)}
.banner.equivalent{border-color:var(--calm);background:var(--calm-wash)}
.banner.equivalent .badge{background:var(--calm)}
.banner.inconclusive{border-color:var(--open);background:var(--open-wash)}
.banner.inconclusive .badge{background:var(--open)}
.banner dl{display:flex;flex-wrap:wrap;gap:6px 28px;margin:12px 0 0}
.banner dt{font-size:.78rem;color:var(--soft)}
.banner dd{margin:0;font-weight:650;font-variant-numeric:tabular-nums}
nav{font-size:.88rem;margin:16px 0 0}
nav div{display:flex;flex-wrap:wrap;gap:2px 16px;margin:3px 0}
h2 small{display:block;font-size:.78rem;font-weight:650;color:var(--soft)}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}
td{overflow-wrap:anywhere;min-width:5.5em}
td.number,th.number{text-align:right;white-space:nowrap;min-width:0;overflow-wrap:normal}
thead th{background:var(--wash);font-weight:650;vertical-align:bottom}
thead th.number{white-space:normal;min-width:4.8em}
tbody th{font-weight:400;min-width:9.5em}
tbody tr:last-child>*{border-bottom:0}
tbody tr:hover{background:var(--wash)}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
.muted{color:var(--soft)}
.strong,tbody th.strong{font-weight:700}
details{margin:10px 0}
summary{cursor:pointer;font-weight:650;padding:4px 0}
details .scroll{margin-top:6px}
.note{color:var(--soft);font-size:.85rem;margin:.5em 0 0;max-width:75ch}
p{max-width:85ch}
figure{margin:0 0 18px;min-width:0}
section>figure{max-width:800px}
figcaption{font-weight:650;margin-bottom:4px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));
gap:18px 26px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.84rem;color:var(--soft)}
.legend i{display:inline-block;width:10px;height:10px;margin-right:6px}
.legend i.round{border-radius:50%}
svg{width:100%;height:auto;display:block}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--ink)}
svg .tick{fill:var(--soft);font-size:12px}
svg .axis{fill:var(--soft)}
svg .label{font-size:12px;paint-order:stroke;stroke:var(--paper);stroke-width:3px;
stroke-linejoin:round}
svg .grid{stroke:var(--rule)}
svg .zero{stroke:var(--ink);stroke-width:1.4}
svg .band{fill:var(--calm-wash)}
svg .line{fill:none;stroke-width:2}
svg .error{stroke-width:1.6;opacity:.75}
svg .marker{stroke-dasharray:5 4;stroke-width:1.3}
svg line.arm0,svg polyline.arm0{stroke:var(--arm0)}
svg line.arm1,svg polyline.arm1{stroke:var(--arm1)}
svg line.arm2,svg polyline.arm2{stroke:var(--arm2)}
svg line.arm3,svg polyline.arm3{stroke:var(--arm3)}
svg line.limit{stroke:var(--limit)}
svg text.arm0,svg .dot.arm0{fill:var(--arm0)}
svg text.arm1,svg .dot.arm1{fill:var(--arm1)}
svg text.arm2,svg .dot.arm2{fill:var(--arm2)}
svg text.arm3,svg .dot.arm3{fill:var(--arm3)}
svg text.limit{fill:var(--limit)}
.legend .arm0{background:var(--arm0)}.legend .arm1{background:var(--arm1)}
.legend .arm2{background:var(--arm2)}.legend .arm3{background:var(--arm3)}
svg .interval{stroke:var(--soft);stroke-width:3;stroke-linecap:round}
svg .interval.good{stroke:var(--good)}svg .interval.bad{stroke:var(--bad)}
svg .effect{fill:var(--soft)}svg .effect.good{fill:var(--good)}svg .effect.bad{fill:var(--bad)}
svg .amount{font-weight:650}svg .amount.good{fill:var(--good)}svg .amount.bad{fill:var(--bad)}
svg .part0,.legend .part0{fill:var(--part0);background:var(--part0)}
svg .part1,.legend .part1{fill:var(--part1);background:var(--part1)}
svg .part2,.legend .part2{fill:var(--part2);background:var(--part2)}
svg .part3,.legend .part3{fill:var(--part3);background:var(--part3)}
svg .part4,.legend .part4{fill:var(--part4);background:var(--part4)}
svg .part5,.legend .part5{fill:var(--part5);background:var(--part5)}
svg .part6,.legend .part6{fill:var(--part6);background:var(--part6)}
svg .part7,.legend .part7{fill:var(--part7);background:var(--part7)}
svg .part8,.legend .part8{fill:var(--part8);background:var(--part8)}
.commands{position:relative;margin:8px 0}
pre{background:var(--wash);border:1px solid var(--rule);border-radius:8px;margin:0;
padding:12px 76px 12px 14px;white-space:pre-wrap;overflow-wrap:anywhere;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,
Consolas,monospace}
.commands button{position:absolute;top:7px;right:7px;font:inherit;font-size:.8rem;cursor:pointer;
padding:1px 10px;border:1px solid var(--rule);border-radius:6px;background:var(--paper);
color:var(--ink)}
ul{padding-left:1.2em;max-width:90ch}
li{margin:.25em 0;overflow-wrap:anywhere}
footer{margin-top:40px;color:var(--soft);font-size:.85rem}
@media (max-width:640px){main{padding:14px 12px 40px}header h1{font-size:1.35rem}
th,td{padding:4px 8px}.banner{padding:12px 14px}.banner dl{gap:6px 18px}}
@media print{details:not([open])>*{display:block}nav,.commands button{display:none}
figure,tr{break-inside:avoid}}
"""

SCRIPT = """
document.querySelectorAll(".commands button").forEach(function(button){
if(!navigator.clipboard){return}
button.hidden=false;
button.addEventListener("click",function(){
navigator.clipboard.writeText(button.nextElementSibling.textContent).then(function(){
button.textContent="Copied";setTimeout(function(){button.textContent="Copy"},1500)})})});
window.addEventListener("beforeprint",function(){
document.querySelectorAll("details").forEach(function(one){one.open=true})});
"""
