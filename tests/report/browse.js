// Runs in a page of `audience report`: uses it as a person does, and returns what it found.
"use strict";
(async () => {
  const found = { problems: [] };
  const check = (is, what) => { if (!is) found.problems.push(what); };
  addEventListener("error", (event) => found.problems.push(`error: ${event.message}`));
  const byId = (id) => document.getElementById(id);
  const settle = () => new Promise((done) => setTimeout(done, 300));
  const data = JSON.parse(byId("data").textContent);
  const total = data.messages.time.length;
  const rows = () => [...document.querySelectorAll("#rows .row")];
  const type = async (id, value) => {
    byId(id).value = value;
    byId("filter").dispatchEvent(new Event("input", { bubbles: true }));
    await settle();
  };
  const shown = () => Number(byId("count").textContent.split(/[ ;]/)[0]);
  const clear = async () => {
    byId("filter").reset();
    await settle();
  };
  try {
    await settle();
    found.total = total;
    check(total > 0 && shown() === total, `all messages at first: ${byId("count").textContent}`);
    check(rows().length > 0 && rows().length < 100, `${rows().length} rows are in the document`);
    const canvases = [...document.querySelectorAll("canvas")];
    check(canvases.length >= 3 * data.channels.length, `${canvases.length} charts`);
    for (const canvas of canvases) {
      const { data: pixels } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      check(pixels.some((byte) => byte !== 0), `an empty chart: ${canvas.getAttribute("aria-label")}`);
    }
    check(byId("timeline").hidden === (data.spans.length === 0), "the spans");
    // Scrolling: the last message is reached, and few rows are in the document all along.
    const list = byId("list");
    let slowest = 0;
    for (let n = 0; n <= 50; n += 1) {
      const begun = performance.now();
      list.scrollTop = (list.scrollHeight * n) / 50;
      list.dispatchEvent(new Event("scroll"));
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
      slowest = Math.max(slowest, performance.now() - begun);
      check(rows().length < 100, "too many rows while scrolling");
    }
    await settle();
    const last = rows().at(-1);
    check(last && last.lastChild.textContent === data.messages.text[total - 1], `the last row: ${last && last.textContent}`);
    // Filters.
    for (const level of ["1", "2", "5"]) {
      await type("f-level", level);
      const expected = data.messages.level.filter((of) => of > 0 && of <= Number(level)).length;
      check(shown() === expected, `level ${level}: ${shown()} of ${expected}`);
    }
    await clear();
    const begun = performance.now();
    await type("f-text", "message 29999");
    found.filterMs = Math.round(performance.now() - begun - 300);
    const matching = data.messages.text.filter((text) => text.includes("message") && text.includes("29999")).length;
    check(shown() === matching, `text: ${shown()} of ${matching}`);
    await type("f-text", "/^level (error|warn)$/");
    check(shown() === data.messages.text.filter((text) => /^level (error|warn)$/.test(text)).length, "a regex");
    await type("f-text", "/(/");
    check(byId("f-text").classList.contains("wrong"), "a wrong regex is marked");
    await clear();
    await type("f-target", "app::lev");
    check(shown() === data.messages.target.filter((n) => data.targets[n].startsWith("app::lev")).length, "target");
    await clear();
    // Zoom by dragging: the messages follow. The middle of all time has other messages than all.
    const chart = canvases[0];
    const box = chart.getBoundingClientRect();
    const drag = (kind, x) => chart.dispatchEvent(
      new PointerEvent(kind, { pointerId: 1, button: 0, clientX: box.left + x, clientY: box.top + 60, bubbles: true }),
    );
    chart.setPointerCapture = () => {};
    drag("pointerdown", 100);
    drag("pointermove", box.width / 2);
    drag("pointerup", box.width / 2);
    await settle();
    check(!byId("all").hidden, "a zoomed chart offers all time");
    check(!byId("tip").textContent.includes("NaN"), byId("tip").textContent);
    byId("all").click();
    await settle();
    check(shown() === total, "all time again");
    // A row's details, and hostile texts.
    await type("f-text", "script");
    const hostile = rows().filter((row) => row.textContent.includes("</script>"));
    found.hostile = hostile.length;
    if (hostile.length) {
      hostile[0].click();
      check(byId("detail").textContent.includes("</script>"), "the details have the whole text");
    }
    await clear();
    check(document.title.startsWith("relayfs report"), `the title is ${document.title}`);
    for (const name of ["img", "svg", "b", "iframe", "link", "a"]) {
      check(document.querySelectorAll(name).length === 0, `an element <${name}> came from a text`);
    }
    check(document.querySelectorAll("script").length === 2, "another script");
    const requests = performance.getEntriesByType("resource").map((entry) => entry.name);
    check(requests.length === 0, `the page loads ${requests.join(", ")}`);
    found.slowestScrollMs = Math.round(slowest);
  } catch (error) {
    found.problems.push(`${error.stack}`);
  }
  return found;
})();
