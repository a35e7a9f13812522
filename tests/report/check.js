// Looks at a page of `audience report` as a browser's parser does: two scripts, one of them data; nothing to load.
// Prints what the data has, a line each, and checks the functions of the page's script.
"use strict";
const assert = require("node:assert");
const fs = require("node:fs");
const vm = require("node:vm");

const page = fs.readFileSync(process.argv[2], "utf8");
// A script element ends at the first "</script", whatever stands in front.
const scripts = [...page.matchAll(/<script\b([^>]*)>([\s\S]*?)<\/script/gi)];
assert.equal(scripts.length, 2, "the scripts of the page");
assert.equal(scripts[0][1].trim(), 'id="data" type="application/json"');
assert.equal(scripts[1][1].trim(), "");
assert.ok(!/<!--/.test(page), "a comment would hide a script's end");
for (const tag of page.replace(scripts[0][2], "").replace(scripts[1][2], "").match(/<[a-z][^>]*>/gi)) {
  assert.ok(!/\s(?:src|href|action|on\w+)\s*=/i.test(tag), `${tag} loads or runs something`);
}
assert.match(page, /Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"/);

const data = JSON.parse(scripts[0][2]);
const module_ = { exports: {} };
vm.runInNewContext(scripts[1][2], { module: module_, BigInt, Date, Number, String, Math, RegExp, Map });
const page_ = module_.exports;

const base = 1764453600123456789n; // 2025-11-29 22:00:00.123456789 UTC
assert.equal(page_.timeText(base, 0, 9), "22:00:00.123456789");
assert.equal(page_.dateText(base, 7200e9), "2025-11-30");
assert.equal(page_.timeText(base, page_.parseTime("22:00:05.5", base), 6), "22:00:05.500000");
assert.equal(page_.dateText(base, page_.parseTime("00:30", base)), "2025-11-30", "behind midnight");
assert.equal(page_.dateText(base, page_.parseTime("2025-11-01 10:00", base)), "2025-11-01");
for (const wrong of ["", "x", "25:00", "10:61", "10", "2025-13-01 10:00"]) assert.equal(page_.parseTime(wrong, base), null);
assert.equal(page_.textFilter("/(/"), null);
assert.ok(page_.textFilter("/^A.c$/i")("abc"));
assert.ok(page_.textFilter("two ONE")("", () => "one two") && !page_.textFilter("two three")("", () => "one two"));
assert.deepEqual([...page_.ticks(37, 4)], [0, 10, 20, 30, 40]);
assert.deepEqual([0, 999, 1234, 5e7].map(page_.short), ["0", "999", "1.23 k", "50 M"]);
assert.deepEqual([5, 1234567, 2e9].map(page_.duration), ["5 ns", "1.23 ms", "2 s"]);
for (const length of [1e3, 1e6, 1e9, 6e10, 1e14, 1e17]) {
  const { found } = page_.timeTicks(base, 0, length, 8);
  assert.ok(found.length >= 1 && found.length <= 9, `${found.length} times of ${length}`);
}

const { messages } = data;
const all = { channel: -1, level: 0, target: "", text: "", from: -Infinity, to: Infinity };
const n = messages.time.length;
for (const [name, list] of Object.entries(messages)) assert.equal(list.length, n, name);
assert.equal(page_.filterRows(data, all).length, n);
assert.ok(messages.time.every((time, at) => at === 0 || messages.time[at - 1] <= time), "the order");
for (const [option, value] of process.argv.slice(3).map((arg) => arg.split("="))) {
  const wanted = { ...all, [option]: option === "text" ? page_.textFilter(value) : option === "target" ? value : Number(value) };
  console.log(`${option}=${value}: ${page_.filterRows(data, wanted).length}`);
}
const sum = (list) => list.reduce((a, b) => a + b, 0);
for (const { name, cpus } of data.channels) {
  const of = (kind) => sum(cpus.map((cpu) => sum(cpu[kind])));
  const fill = Math.max(...cpus.flatMap((cpu) => cpu.fill));
  console.log(`channel ${name}: ${of("messages")} messages, ${of("bytes")} bytes, ${of("lost")} lost, fill ${fill >= 0}`);
}
for (const [begin, end, line, depth, isOpen, name] of data.spans) {
  assert.ok(begin <= end && data.lines[line] !== undefined);
  console.log(`span ${name}: depth ${depth}, open ${isOpen}`);
}
console.log(`left out ${data.leftOut}`);
for (let at = 0; at < Math.min(n, 50); at += 1) {
  const of = [data.channels[messages.channel[at]].name, messages.level[at], data.targets[messages.target[at]]];
  console.log(JSON.stringify([...of, messages.text[at]]));
}
