// Opens a page in headless Chromium, by its protocol over a pipe: takes a screenshot, then runs browse.js in the page.
// Prints what that found. Fails if something was wrong, or if the page asked for anything beside itself.
//
//   node browser.js PAGE SCREENSHOT light|dark
"use strict";
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

const [page, screenshot, scheme] = process.argv.slice(2);
const profile = fs.mkdtempSync(path.join(os.tmpdir(), "relayfs-report-"));
// A container may have no namespaces to give, and little /dev/shm.
const args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--window-size=1400,1500",
  `--user-data-dir=${profile}`, "--remote-debugging-pipe", "about:blank"];
const browser = spawn("chromium", args, { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] });
const [said, input, output] = [[], browser.stdio[3], browser.stdio[4]];
browser.stderr.on("data", (text) => said.push(String(text)));

const waiting = new Map();
const events = [];
let number = 0;
let rest = "";
output.setEncoding("utf8");
output.on("data", (text) => {
  const messages = (rest + text).split("\0");
  rest = messages.pop();
  for (const message of messages.map((one) => JSON.parse(one))) {
    const answer = waiting.get(message.id);
    waiting.delete(message.id);
    if (!answer) events.push(message);
    else if (message.error) answer.reject(new Error(message.error.message));
    else answer.resolve(message.result);
  }
});

function ask(method, params = {}, sessionId = undefined) {
  number += 1;
  input.write(`${JSON.stringify({ id: number, method, params, sessionId })}\0`);
  return new Promise((resolve, reject) => waiting.set(number, { resolve, reject }));
}

async function main() {
  const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true });
  const of = (method, params) => ask(method, params, sessionId);
  const value = async (expression) => {
    const answer = await of("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (answer.exceptionDetails) throw new Error(JSON.stringify(answer.exceptionDetails));
    return answer.result.value;
  };
  for (const domain of ["Page", "Network", "Runtime", "Log"]) await of(`${domain}.enable`);
  await of("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  await of("Emulation.setDeviceMetricsOverride", { width: 1400, height: 1500, deviceScaleFactor: 1, mobile: false });
  const url = pathToFileURL(page).href;
  await of("Page.navigate", { url });
  while (!(await value("document.readyState === 'complete' && location.href.startsWith('file:')"))) {
    await new Promise((done) => setTimeout(done, 50));
  }
  const { data } = await of("Page.captureScreenshot", { format: "png" });
  fs.writeFileSync(screenshot, Buffer.from(data, "base64"));
  const found = await value(fs.readFileSync(path.join(__dirname, "browse.js"), "utf8"));
  for (const { method, params } of events) {
    if (method === "Network.requestWillBeSent" && params.request.url !== url) found.problems.push(`a request: ${params.request.url}`);
    if (method === "Runtime.exceptionThrown") found.problems.push(`an exception: ${JSON.stringify(params.exceptionDetails)}`);
    if (method === "Log.entryAdded" && params.entry.level === "error") found.problems.push(`the browser says: ${params.entry.text}`);
    if (method === "Page.javascriptDialogOpening") found.problems.push(`a dialog: ${params.message}`);
  }
  console.log(JSON.stringify(found));
  return found.problems.length ? 1 : 0;
}

// A browser that hangs is an error, not a wait without end.
const limit = setTimeout(() => end(new Error(`no answer in time: ${said.join("").slice(-500)}`)), 280_000);
let isOver = false;
function end(result) {
  if (isOver) return;
  isOver = true;
  clearTimeout(limit);
  if (result instanceof Error) console.error(result.message);
  browser.once("exit", () => {
    fs.rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    process.exit(result instanceof Error ? 1 : result);
  });
  browser.kill("SIGKILL");
}
browser.on("error", (error) => {
  console.error(`cannot run chromium: ${error.message}`);
  process.exit(1);
});
browser.on("exit", () => end(new Error(`chromium ended: ${said.join("").slice(-500)}`)));
main().then(end, end);
