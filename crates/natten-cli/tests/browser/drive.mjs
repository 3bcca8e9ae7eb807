// Opens a page in a real browser, works one slider and clicks one token, and prints what the page showed.
// Usage: node drive.mjs BROWSER PAGE_URL SCREENSHOT.png
// Speaks the browser's own protocol over a pipe: nothing to install besides node and the browser.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [browser, url, screenshot] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "natten-browser-"));
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", `--user-data-dir=${profile}`];
const child = spawn(browser, [...flags, "--window-size=1200,900"], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
const [, , , toBrowser, fromBrowser] = child.stdio;

let nextId = 1, received = "", session;
const waiting = new Map(), errors = [];
fromBrowser.on("data", (chunk) => {
  received += chunk;
  const messages = received.split("\0");
  received = messages.pop();
  for (const text of messages) {
    const message = JSON.parse(text);
    if (message.method === "Runtime.exceptionThrown") errors.push(message.params.exceptionDetails.text);
    const settle = waiting.get(message.id);
    if (!settle) continue;
    waiting.delete(message.id);
    message.error ? settle.reject(new Error(message.error.message)) : settle.resolve(message.result);
  }
});

function send(method, params = {}) {
  const id = nextId++;
  toBrowser.write(JSON.stringify({ id, method, params, sessionId: session }) + "\0");
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

async function evaluate(expression) {
  const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true });
  if (exceptionDetails) throw new Error(exceptionDetails.text);
  return result.value;
}

async function press(x, y) {
  for (const type of ["mousePressed", "mouseReleased"]) {
    await send("Input.dispatchMouseEvent", { type, x, y, button: "left", clickCount: 1 });
  }
}

/** Where an element is on the screen. */
const place = (selector) => evaluate(`(() => { const box = document.querySelector("${selector}").getBoundingClientRect();
  return { x: box.x, y: box.y, width: box.width, height: box.height }; })()`);

/** Whether the page is there and its program has run. A new tab is an empty document first, which is complete too, and goes when the page comes. */
const isLoaded = () =>
  evaluate(`document.readyState === "complete" && !!document.querySelector("#facts")?.innerText`).catch(() => false);

const facts = () => evaluate(`document.querySelector("#facts").innerText`);

async function main() {
  const { targetId } = await send("Target.createTarget", { url });
  session = (await send("Target.attachToTarget", { targetId, flatten: true })).sessionId;
  await send("Runtime.enable");
  for (let tries = 0; !(await isLoaded()); tries++) {
    if (tries > 200) throw new Error("the page does not load");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const before = await facts();
  // One step to the right on the window slider, as a person with a keyboard does it.
  await evaluate(`document.querySelector("#window0").focus()`);
  for (const type of ["keyDown", "keyUp"]) {
    await send("Input.dispatchKeyEvent", { type, key: "ArrowRight", code: "ArrowRight", windowsVirtualKeyCode: 39 });
  }
  const afterKey = await facts();
  // And the token in the upper left corner of the picture, with the mouse.
  const picture = await place("#picture");
  await press(picture.x + 3, picture.y + 3);
  const query = await evaluate("state.axes.map((axis) => axis.query)");
  await evaluate(`document.querySelector("#showTiles").click()`);
  const afterTiles = await facts();
  const { data } = await send("Page.captureScreenshot", { format: "png" });
  writeFileSync(screenshot, Buffer.from(data, "base64"));
  console.log(JSON.stringify({ before, afterKey, query, afterTiles, errors }));
}

/** Helpers of the browser write a while after it has gone. A folder that stays after all says nothing of the page. */
async function remove(folder) {
  for (let tries = 0; tries < 50; tries++) {
    try {
      return rmSync(folder, { recursive: true, force: true });
    } catch (error) {
      if (tries === 49) console.error(`${folder} stays: ${error.message}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

const timer = setTimeout(() => { console.error("the browser does not answer"); child.kill("SIGKILL"); process.exit(3); }, 60000);
try {
  await main();
} finally {
  clearTimeout(timer);
  child.kill("SIGKILL");
  await new Promise((resolve) => child.on("close", resolve));
  await remove(profile);
}
