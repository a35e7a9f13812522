"use strict";
// Draws the report. Texts of programs get into the page as text nodes, attributes' values and canvas texts alone.

const LEVELS = { 0: "", 1: "ERROR", 2: "WARN", 3: "INFO", 4: "DEBUG", 5: "TRACE", 9: "lost" };
const NOTICE = 9;
const ROW = 22;
// Browsers lay out no higher elements than some millions of pixels.
const HEIGHT_MAX = 8e6;
const DAY = 86400n * 1000000000n;

/** Time as text: `base` in nanoseconds since 1970, `relative` to it. */
function timeText(base, relative, digits) {
  const nanos = base + BigInt(Math.round(relative));
  const time = new Date(Number(nanos / 1000000n)).toISOString().slice(11, 19);
  const fraction = String(nanos % 1000000000n).padStart(9, "0").slice(0, digits);
  return digits > 0 ? `${time}.${fraction}` : time;
}

/** The date of a time, such as 2026-11-22. */
function dateText(base, relative) {
  return new Date(Number((base + BigInt(Math.round(relative))) / 1000000n)).toISOString().slice(0, 10);
}

/** Nanoseconds relative to `base` of a text such as 10:30, 10:30:00.5 or 2026-11-22 10:30. `null` if it is none. */
function parseTime(text, base) {
  const form = /^(?:(\d{4}-\d\d-\d\d)[ T])?(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?Z?$/.exec(text.trim());
  if (!form) return null;
  const [hours, minutes, seconds] = [form[2], form[3], form[4] || "0"].map(Number);
  if (hours > 23 || minutes > 59 || seconds > 60) return null;
  const ofDay = BigInt((hours * 60 + minutes) * 60 + seconds) * 1000000000n + BigInt((form[5] || "").padEnd(9, "0"));
  let midnight = base - (base % DAY);
  if (form[1]) {
    const date = Date.parse(form[1] + "T00:00:00Z");
    if (Number.isNaN(date)) return null;
    midnight = BigInt(date) * 1000000n;
  } else if (midnight + ofDay + DAY / 2n < base) {
    midnight += DAY;
  }
  return Number(midnight + ofDay - base);
}

/** A function that says whether a text passes: all words, or /regex/. `null` if the regex is wrong. */
function textFilter(wanted) {
  const regex = /^\/(.+)\/(i?)$/.exec(wanted.trim());
  if (regex) {
    try {
      const found = new RegExp(regex[1], regex[2]);
      return (text) => found.test(text);
    } catch {
      return null;
    }
  }
  const words = wanted.toLowerCase().split(/\s+/).filter((word) => word);
  return (text, lower) => words.every((word) => lower().includes(word));
}

/** A number with a unit: 1.5 k, 20 M. */
function short(number) {
  const units = ["", " k", " M", " G", " T"];
  let unit = 0;
  while (Math.abs(number) >= 1000 && unit + 1 < units.length) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit === 0 && Number.isInteger(number) ? 0 : Math.abs(number) < 10 ? 2 : Math.abs(number) < 100 ? 1 : 0;
  return String(Number(number.toFixed(digits))) + units[unit];
}

/** A number with a unit of measure: 1.5 kB. */
function amount(number, unit) {
  const text = short(number);
  return text.includes(" ") ? text + unit : `${text} ${unit}`.trim();
}

/** A duration in nanoseconds: 1.2 ms. */
function duration(nanos) {
  const units = [["s", 1e9], ["ms", 1e6], ["µs", 1e3], ["ns", 1]];
  const [unit, size] = units.find(([, size]) => nanos >= size) || units[3];
  return `${Number((nanos / size).toPrecision(3))} ${unit}`;
}

/** Round values from 0 to at least `max`, about `count` of them. */
function ticks(max, count) {
  if (!(max > 0)) return [0, 1];
  const raw = max / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
  const found = [0];
  while (found[found.length - 1] < max) found.push(Number((found.length * step).toPrecision(12)));
  return found;
}

/** Round times in a range of nanoseconds, relative to `base`. */
function timeTicks(base, from, to, count) {
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500].flatMap((n) => [n * 1e3, n * 1e6]).sort((a, b) => a - b);
  const seconds = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const all = [...steps, ...seconds.map((n) => n * 1e9)];
  const step = all.find((n) => (to - from) / n <= count) || Math.ceil((to - from) / count / 86400e9) * 86400e9;
  const phase = Number(base % BigInt(step));
  const found = [];
  for (let at = Math.ceil((from + phase) / step) * step - phase; at <= to; at += step) found.push(at);
  const digits = step >= 1e9 ? 0 : step >= 1e6 ? 3 : 6;
  return { found, digits };
}

/** The rows that pass, as indices. */
function filterRows(data, wanted) {
  const { time, channel, level, target, text } = data.messages;
  const lower = data.lower || (data.lower = []);
  const targets = data.targets.map((name) => name.startsWith(wanted.target));
  const found = [];
  for (let at = 0; at < time.length; at += 1) {
    if (wanted.channel >= 0 && channel[at] !== wanted.channel) continue;
    if (wanted.level > 0 && (level[at] === 0 || level[at] > wanted.level)) continue;
    if (wanted.level === -1 && level[at] !== NOTICE) continue;
    if (wanted.target && !targets[target[at]]) continue;
    if (time[at] < wanted.from || time[at] > wanted.to) continue;
    if (wanted.text && !wanted.text(text[at], () => lower[at] || (lower[at] = text[at].toLowerCase()))) continue;
    found.push(at);
  }
  return found;
}

function start() {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const base = BigInt(data.base);
  const make = (name, text, className) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const hue = (n) => `hsl(${(212 + n * 137.5) % 360} ${isDark() ? "75% 66%" : "70% 42%"})`;

  // All time that the page knows.
  let first = Infinity;
  let last = -Infinity;
  const seen = (from, to) => {
    first = Math.min(first, from);
    last = Math.max(last, to);
  };
  for (const of of data.channels) {
    for (const cpu of of.cpus) seen(cpu.begin, cpu.begin + cpu.step * Math.max(1, cpu.messages.length));
  }
  const times = data.messages.time;
  if (times.length) seen(times[0], times[times.length - 1]);
  for (const [begin, end] of data.spans) seen(begin, end);
  if (first > last) [first, last] = [0, 1e9];
  if (last - first < 1e6) last = first + 1e6;
  const view = { from: first, to: last };
  const charts = [];

  const tip = byId("tip");
  function showTip(event, text) {
    tip.textContent = text;
    tip.hidden = !text;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - box.width - 14 : event.clientX + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
  }

  function setView(from, to) {
    [view.from, view.to] = [from, to];
    const isAll = from === first && to === last;
    byId("all").hidden = isAll;
    byId("range").textContent =
      `${dateText(base, from)} ${timeText(base, from, 3)} to ${timeText(base, to, 3)} UTC, ${duration(to - from)}` +
      (isAll ? "; drag to zoom" : "");
    charts.forEach((draw) => draw());
    filter();
  }

  /** A canvas that is drawn at the screen's resolution, and zooms by dragging. */
  function chart(parent, height, label, draw, hover) {
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    canvas.style.height = `${height}px`;
    parent.append(canvas);
    const edges = { left: 52, right: 8, top: 20, bottom: 20 };
    let drag = null;
    const x = (time) => edges.left + ((time - view.from) / (view.to - view.from)) * (canvas.clientWidth - edges.left - edges.right);
    const timeAt = (px) =>
      view.from + ((px - edges.left) / Math.max(1, canvas.clientWidth - edges.left - edges.right)) * (view.to - view.from);
    const clamp = (time) => Math.min(view.to, Math.max(view.from, time));
    function paint() {
      const width = canvas.clientWidth;
      if (width === 0) return;
      const ratio = devicePixelRatio || 1;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      const g = canvas.getContext("2d");
      g.scale(ratio, ratio);
      g.font = "11px system-ui, sans-serif";
      const { found, digits } = timeTicks(base, view.from, view.to, Math.max(2, Math.floor(width / 90)));
      g.strokeStyle = colour("--grid");
      g.fillStyle = colour("--muted");
      g.textAlign = "center";
      g.textBaseline = "top";
      for (const time of found) {
        const at = Math.round(x(time)) + 0.5;
        g.beginPath();
        g.moveTo(at, edges.top);
        g.lineTo(at, height - edges.bottom);
        g.stroke();
        const text = timeText(base, time, digits);
        const half = g.measureText(text).width / 2;
        if (at + half < width && at - half > 0) g.fillText(text, at, height - edges.bottom + 4);
      }
      draw(g, { x, width, height, edges });
      if (drag) {
        g.fillStyle = colour("--accent");
        g.globalAlpha = 0.18;
        g.fillRect(Math.min(drag.from, drag.to), edges.top, Math.abs(drag.to - drag.from), height - edges.top - edges.bottom);
        g.globalAlpha = 1;
      }
    }
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      drag = { from: event.offsetX, to: event.offsetX };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag) {
        drag.to = event.offsetX;
        paint();
      }
      showTip(event, hover(timeAt(event.offsetX), event.offsetY, { x, timeAt, edges }));
    });
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    canvas.addEventListener("pointercancel", () => { drag = null; paint(); });
    canvas.addEventListener("pointerup", () => {
      const done = drag;
      drag = null;
      if (!done) return;
      const [from, to] = [done.from, done.to].sort((a, b) => a - b).map((px) => clamp(timeAt(px)));
      if (Math.abs(done.to - done.from) > 4 && to - from >= 1000) setView(from, to);
      else paint();
    });
    canvas.addEventListener("dblclick", () => setView(first, last));
    charts.push(paint);
  }

  const KINDS = {
    messages: { title: "Messages per second", unit: "/s", of: (cpu, n) => (cpu.messages[n] / cpu.step) * 1e9 },
    bytes: { title: "Bytes per second", unit: "B/s", of: (cpu, n) => (cpu.bytes[n] / cpu.step) * 1e9 },
    fill: { title: "Fill", unit: "%", of: (cpu, n) => (cpu.fill[n] < 0 ? null : cpu.fill[n] / 10) },
    lost: { title: "Lost messages", unit: "", of: (cpu, n) => cpu.lost[n] },
  };

  /** Draws numbers of each CPU as steps. */
  function numbers(parent, channel, kind) {
    const { unit, of } = KINDS[kind];
    const title = kind === "fill"
      ? channel.fillsBuffer ? "Fill of the buffer, %" : "Fill of each sub-buffer, %"
      : KINDS[kind].title;
    function draw(g, { x, width, height, edges }) {
      let max = kind === "fill" ? 100 : 0;
      for (const cpu of channel.cpus) {
        for (let n = 0; n < cpu.messages.length; n += 1) {
          const begin = cpu.begin + n * cpu.step;
          if (begin + cpu.step >= view.from && begin <= view.to) max = Math.max(max, of(cpu, n) || 0);
        }
      }
      const values = kind === "fill" ? [0, 25, 50, 75, 100] : ticks(kind === "lost" ? Math.max(max, 1) : max, 4);
      const top = values[values.length - 1];
      const y = (value) => height - edges.bottom - (value / top) * (height - edges.top - edges.bottom);
      g.textAlign = "right";
      g.textBaseline = "middle";
      for (const value of values) {
        if (kind === "lost" && !Number.isInteger(value)) continue;
        const at = Math.round(y(value)) + 0.5;
        g.strokeStyle = value === 0 ? colour("--line") : colour("--grid");
        g.beginPath();
        g.moveTo(edges.left, at);
        g.lineTo(width - edges.right, at);
        g.stroke();
        g.fillStyle = colour("--muted");
        g.fillText(short(value), edges.left - 6, at);
      }
      g.textAlign = "left";
      g.textBaseline = "top";
      g.fillStyle = colour("--text");
      g.fillText(title, edges.left, 3);
      g.save();
      g.beginPath();
      g.rect(edges.left, edges.top - 2, width - edges.left - edges.right, height - edges.top - edges.bottom + 4);
      g.clip();
      for (const cpu of channel.cpus) {
        g.strokeStyle = hue(cpu.cpu);
        g.fillStyle = hue(cpu.cpu);
        g.lineWidth = 1.5;
        g.beginPath();
        let before = null;
        for (let n = 0; n < cpu.messages.length; n += 1) {
          const value = of(cpu, n);
          // What is not known is no zero: the last value holds.
          if (value === null) continue;
          const [left, right, at] = [x(cpu.begin + n * cpu.step), x(cpu.begin + (n + 1) * cpu.step), y(value)];
          if (kind === "lost") {
            if (value > 0) g.fillRect(left, at, Math.max(1.5, right - left - 0.5), height - edges.bottom - at);
            continue;
          }
          if (before === null) g.moveTo(left, at);
          else g.lineTo(left, before);
          g.lineTo(left, at);
          g.lineTo(right, at);
          before = at;
        }
        g.stroke();
        if (cpu.messages.length === 1 && kind !== "lost" && of(cpu, 0) !== null) {
          g.beginPath();
          g.arc(Math.max(x(cpu.begin), edges.left + 3), y(of(cpu, 0)), 3, 0, 7);
          g.fill();
        }
      }
      g.restore();
    }
    function hover(time) {
      const lines = channel.cpus.flatMap((cpu) => {
        const n = Math.floor((time - cpu.begin) / cpu.step);
        const value = n >= 0 && n < cpu.messages.length ? of(cpu, n) : null;
        return value === null ? [] : [`cpu${cpu.cpu}: ${amount(value, unit)}`];
      });
      return lines.length ? [timeText(base, time, 3), ...lines].join("\n") : "";
    }
    chart(parent, 150, `${channel.name}: ${title}`, draw, hover);
  }

  function channelSections() {
    for (const channel of data.channels) {
      const section = make("div", undefined, "channel");
      const bar = make("div", undefined, "bar");
      bar.append(make("h3", channel.name), make("span", channel.about, "muted"));
      const legend = make("span", undefined, "legend");
      for (const cpu of channel.cpus) {
        const sum = (list) => list.reduce((a, b) => a + b, 0);
        const item = make("span");
        const box = make("i");
        box.style.background = hue(cpu.cpu);
        const lost = sum(cpu.lost);
        const count = sum(cpu.messages) ? `${short(sum(cpu.messages))} messages, ` : "";
        item.append(box, `cpu${cpu.cpu}: ${count}${amount(sum(cpu.bytes), "B")}${lost ? `, ${short(lost)} lost` : ""}`);
        legend.append(item);
      }
      bar.append(legend);
      const row = make("div", undefined, "charts");
      section.append(bar, row);
      byId("channels").append(section);
      const hasMessages = channel.cpus.some((cpu) => cpu.messages.some((n) => n > 0));
      for (const kind of [hasMessages ? "messages" : "bytes", "fill", "lost"]) numbers(row, channel, kind);
    }
    if (!data.channels.length) byId("channels").append(make("p", "There is no channel.", "muted"));
  }

  /** Draws spans as bars, a line for each thread. */
  function spanSection() {
    if (!data.spans.length) return;
    byId("timeline").hidden = false;
    const BAR = 16;
    const tops = [];
    const depths = data.lines.map(() => 1);
    for (const [, , line, depth] of data.spans) depths[line] = Math.max(depths[line], depth + 1);
    let height = 20;
    for (const depth of depths) {
      tops.push(height);
      height += 18 + depth * BAR + 4;
    }
    height = Math.min(height + 20, 16000);
    byId("span-count").textContent =
      `${data.spans.length} spans of ${data.lines.length} threads` +
      (data.spansLeftOut ? `; ${data.spansLeftOut} more are left out` : "");
    function draw(g, { x, width, edges }) {
      g.textAlign = "left";
      g.textBaseline = "middle";
      data.lines.forEach((line, n) => {
        g.fillStyle = colour("--text");
        g.fillText(line, 6, tops[n] + 9);
        g.strokeStyle = colour("--line");
        g.beginPath();
        g.moveTo(0, tops[n] + 0.5);
        g.lineTo(width, tops[n] + 0.5);
        g.stroke();
      });
      // One bar for a pixel is enough.
      const drawn = new Map();
      for (const [begin, end, line, depth, isOpen, name] of data.spans) {
        if (end < view.from || begin > view.to) continue;
        const left = Math.max(x(begin), edges.left);
        const right = Math.min(x(end), width - edges.right);
        const [top, size] = [tops[line] + 18 + depth * BAR, Math.max(1, right - left)];
        const key = line * 64 + depth;
        if (size <= 1 && drawn.get(key) === Math.floor(left)) continue;
        drawn.set(key, Math.floor(left));
        let code = 0;
        for (let at = 0; at < name.length; at += 1) code = (code * 31 + name.charCodeAt(at)) % 9973;
        g.fillStyle = `hsl(${(code * 47) % 360} ${isDark() ? "45% 38%" : "60% 80%"})`;
        g.fillRect(left, top, size, BAR - 2);
        if (isOpen) {
          g.fillStyle = colour("--error");
          g.fillRect(right - 2, top, 2, BAR - 2);
        }
        if (size > 30) {
          g.save();
          g.beginPath();
          g.rect(left, top, size - 3, BAR);
          g.clip();
          g.fillStyle = colour("--text");
          g.fillText(name, left + 4, top + BAR / 2 - 1);
          g.restore();
        }
      }
    }
    function hover(time, y, { timeAt, edges }) {
      const slack = timeAt(edges.left + 2) - timeAt(edges.left);
      const found = data.spans.find(([begin, end, line, depth]) => {
        const top = tops[line] + 18 + depth * BAR;
        return y >= top && y < top + BAR && time >= begin - slack && time <= end + slack;
      });
      if (!found) return "";
      const [begin, end, line, , isOpen, name] = found;
      return `${name}\n${data.lines[line]}\n${timeText(base, begin, 6)}, ${duration(end - begin)}${isOpen ? ", its end is missing" : ""}`;
    }
    chart(byId("spans"), height, "spans of threads", draw, hover);
  }

  // The messages: only the rows on the screen are in the document.
  const list = byId("list");
  let rows = [];
  let chosen = -1;
  let wanted = null;

  function layOut() {
    const full = rows.length * ROW;
    byId("sizer").style.height = `${Math.min(full, HEIGHT_MAX)}px`;
    const visible = Math.ceil(list.clientHeight / ROW) + 2;
    const scrolled = Math.min(full, HEIGHT_MAX) - list.clientHeight;
    const part = scrolled > 0 ? Math.min(1, list.scrollTop / scrolled) : 0;
    // The last row ends at the lower edge, whatever the scale is.
    const top = full > HEIGHT_MAX ? part * (full - list.clientHeight) : list.scrollTop;
    const begin = Math.max(0, Math.floor(top / ROW));
    const nodes = [];
    for (let n = begin; n < Math.min(rows.length, begin + visible); n += 1) nodes.push(row(n));
    const box = byId("rows");
    box.style.transform = `translateY(${list.scrollTop - (top - begin * ROW)}px)`;
    box.replaceChildren(...nodes);
  }

  function marked(text) {
    const cell = make("span");
    const words = wanted && wanted.words;
    if (!words || !words.length) {
      cell.textContent = text;
      return cell;
    }
    const lower = text.toLowerCase();
    let at = 0;
    while (lower.length === text.length && at < text.length) {
      const next = words
        .map((word) => [lower.indexOf(word, at), word.length])
        .filter(([place]) => place >= 0)
        .sort((a, b) => a[0] - b[0])[0];
      if (!next) break;
      cell.append(text.slice(at, next[0]), make("mark", text.slice(next[0], next[0] + next[1])));
      at = next[0] + next[1];
    }
    cell.append(text.slice(at));
    return cell;
  }

  function row(n) {
    const at = rows[n];
    const of = data.messages;
    const node = make("div", undefined, `row${n % 2 ? " odd" : ""}${at === chosen ? " chosen" : ""}`);
    node.dataset.at = String(at);
    const level = of.level[at];
    const cells = [
      `${dateText(base, of.time[at]).slice(5)} ${timeText(base, of.time[at], 6)}`,
      String(of.cpu[at]),
      LEVELS[level] || "",
      data.writers[of.writer[at]],
      data.targets[of.target[at]],
    ].map((text) => make("span", text));
    const text = marked(of.text[at]);
    if (level) {
      cells[2].classList.add(`l${level}`);
      if (level <= 2 || level === NOTICE) text.classList.add(`l${level}`);
    }
    node.append(...cells, text);
    return node;
  }

  function detail(at) {
    chosen = at;
    const of = data.messages;
    const box = byId("detail");
    box.hidden = at < 0;
    if (at >= 0) {
      const names = [
        ["time", `${dateText(base, of.time[at])} ${timeText(base, of.time[at], 9)} UTC`],
        ["channel", `${data.channels[of.channel[at]].name}, cpu${of.cpu[at]}`],
        ["level", LEVELS[of.level[at]] || ""],
        ["target", data.targets[of.target[at]]],
        ["writer", data.writers[of.writer[at]]],
      ];
      const head = names.filter(([, text]) => text).map(([name, text]) => `${name}: ${text}`);
      box.textContent = `${head.join("\n")}\n\n${of.text[at]}`;
    }
    layOut();
  }

  function filter() {
    const time = (id, none) => {
      const input = byId(id);
      const value = input.value.trim() === "" ? none : parseTime(input.value, base);
      input.classList.toggle("wrong", value === null);
      return value === null ? none : value;
    };
    const text = byId("f-text").value;
    const passes = textFilter(text);
    byId("f-text").classList.toggle("wrong", passes === null);
    wanted = {
      channel: Number(byId("f-channel").value),
      level: Number(byId("f-level").value),
      target: byId("f-target").value,
      text: text.trim() && passes,
      words: /^\/.*\/i?$/.test(text.trim()) ? [] : text.toLowerCase().split(/\s+/).filter((word) => word),
      from: Math.max(time("f-from", -Infinity), view.from > first ? view.from : -Infinity),
      to: Math.min(time("f-to", Infinity), view.to < last ? view.to : Infinity),
    };
    rows = filterRows(data, wanted);
    const all = data.messages.time.length;
    byId("count").textContent =
      (rows.length === all ? `${all}` : `${rows.length} of ${all}`) +
      (data.leftOut ? `; ${data.leftOut} older ones are not in this page` : "");
    list.scrollTop = 0;
    layOut();
  }

  function filters() {
    const option = (select, value, text) => {
      const node = make("option", text);
      node.value = String(value);
      byId(select).append(node);
    };
    option("f-channel", -1, "all");
    data.channels.forEach((channel, n) => option("f-channel", n, channel.name));
    option("f-level", 0, "all");
    for (let level = 1; level <= 5; level += 1) option("f-level", level, level === 1 ? "ERROR" : `${LEVELS[level]} and worse`);
    option("f-level", -1, "losses alone");
    data.targets.filter((name) => name).slice(0, 500).forEach((name) => {
      const node = make("option");
      node.value = name;
      byId("targets").append(node);
    });
    let due = 0;
    byId("filter").addEventListener("input", () => {
      clearTimeout(due);
      due = setTimeout(filter, 80);
    });
    byId("filter").addEventListener("reset", () => setTimeout(filter, 0));
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
    list.addEventListener("scroll", () => requestAnimationFrame(layOut), { passive: true });
    byId("rows").addEventListener("click", (event) => {
      const node = event.target.closest(".row");
      if (node) detail(Number(node.dataset.at) === chosen ? -1 : Number(node.dataset.at));
    });
    byId("all").addEventListener("click", () => setView(first, last));
  }

  for (const [name, text] of data.facts) {
    const item = make("div");
    item.append(make("dt", name), make("dd", text));
    byId("facts").append(item);
  }
  const names = data.channels.map((channel) => channel.name).join(", ");
  document.title = `relayfs report: ${names.slice(0, 80)}`;
  filters();
  channelSections();
  spanSection();
  setView(first, last);
  addEventListener("resize", () => {
    charts.forEach((draw) => draw());
    layOut();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((draw) => draw()));
}

if (typeof document === "undefined") {
  module.exports = { timeText, dateText, parseTime, textFilter, short, amount, duration, ticks, timeTicks, filterRows };
} else {
  start();
}
