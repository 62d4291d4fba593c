// Whether the server is there. A request that fails says that it is not; from then on the page asks
// until it is back, and whoever shows something of the server loads it again.
import { signal } from "@preact/signals";

export type Connection = "ok" | "lost" | "loading" | "draining" | "failed";

export const connection = signal<Connection>("ok");
/** Counts how often the server came back: views read it to load again. */
export const returns = signal(0);
/** When the page asks next, in `performance.now()` milliseconds; `null` while it is asking. */
export const nextTry = signal<number | null>(null);

const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 8_000;
/** How often the page looks while all is well. */
const HEARTBEAT = 15_000;

let pause = FIRST_PAUSE;
let timer: ReturnType<typeof setTimeout> | undefined;

export function lost(): void {
  if (connection.value === "lost") return;
  connection.value = "lost";
  pause = FIRST_PAUSE;
  schedule(pause);
}

/** The server has answered something. */
export function reached(): void {
  if (connection.value === "lost") void look();
}

function schedule(after: number): void {
  clearTimeout(timer);
  nextTry.value = performance.now() + after;
  timer = setTimeout(() => void look(), after);
}

async function state(): Promise<Connection> {
  let response: Response;
  try {
    response = await fetch("/ready", { cache: "no-store", credentials: "omit" });
  } catch {
    return "lost";
  }
  if (response.ok) return "ok";
  const text = await response.text().catch(() => "");
  if (/shut|drain/.test(text)) return "draining";
  return /load/.test(text) ? "loading" : "failed";
}

/** Asks now. */
export async function look(): Promise<void> {
  clearTimeout(timer);
  nextTry.value = null;
  const before = connection.value;
  const now = await state();
  connection.value = now;
  if (now === "ok") {
    pause = FIRST_PAUSE;
    if (before !== "ok") returns.value += 1;
    schedule(HEARTBEAT);
  } else {
    pause = Math.min(pause * 1.6, LONGEST_PAUSE);
    schedule(pause);
  }
}

export function startHeartbeat(): void {
  void look();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) void look();
  });
}
