// Child processes that never outlive the test file that started them, whichever way it ends.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { soon, until } from "./wait.js";

const alive = new Set();

process.on("exit", () => alive.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

/** Starts `command`; the result remembers the lines it printed and can wait for one, stop, and be waited for. */
export function start(command, args, { env = {}, cwd } = {}) {
  const child = spawn(command, args, {
    cwd,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR ?? "/tmp", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  alive.add(child);
  const lines = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on("line", (line) => lines.push(line));
  }
  let failure;
  child.on("error", (error) => (failure = error));
  const exited = new Promise((resolve) => {
    child.on("close", (code, signal) => {
      alive.delete(child);
      resolve({ code, signal });
    });
  });

  const running = () => !failure && child.exitCode === null && child.signalCode === null;
  const assertRunning = () => {
    if (!running()) throw new Error(`${command} ${args.join(" ")} ended early: ${failure ?? lines.slice(-20).join("\n")}`);
  };

  return {
    pid: child.pid,
    lines,
    exited,
    running,
    assertRunning,
    signal: (name) => child.kill(name),
    /** The first match of `pattern` in a printed line. */
    printed: (pattern) =>
      until(`${command} prints ${pattern}`, () => {
        for (const line of lines) {
          const match = line.match(pattern);
          if (match) return match;
        }
        assertRunning();
      }),
    /** Asks it to end and returns its exit code and signal. One that does not end is killed with this process. */
    stop(signal = "SIGTERM") {
      if (running()) {
        child.kill("SIGCONT");
        child.kill(signal);
      }
      return soon(`${command} to end`, exited);
    },
  };
}
