// The place in a search's log that is looked at: its end, or an earlier one.
import { batch, signal } from "@preact/signals";
import type { SearchRun } from "./run";

/** A replay takes at least and at most so many milliseconds, however long the search took. */
const SHORTEST = 4_000;
const LONGEST = 16_000;

export class Replay {
  /** Milliseconds after the start; `null` is the end, also while it moves on. */
  readonly at = signal<number | null>(null);
  readonly isPlaying = signal(false);
  readonly speed = signal(1);
  #run: SearchRun;
  #frame = 0;
  #last = 0;

  constructor(run: SearchRun) {
    this.#run = run;
  }

  /** How many events of the log are looked at. */
  count(): number {
    const { log } = this.#run;
    const at = this.at.value;
    return at === null ? log.length : log.countAt(at);
  }

  seek(at: number): void {
    this.at.value = at >= this.#run.log.duration ? null : Math.max(at, 0);
  }

  /** One event on or back. */
  step(by: number): void {
    const { log } = this.#run;
    this.pause();
    const count = Math.min(Math.max(this.count() + by, 0), log.length);
    const entry = log.entries[count - 1];
    this.seek(entry === undefined ? 0 : entry.at);
  }

  play(): void {
    batch(() => {
      if (this.at.value === null) this.at.value = 0;
      this.isPlaying.value = true;
    });
    this.#last = performance.now();
    this.#frame = requestAnimationFrame((now) => this.#tick(now));
  }

  #tick(now: number): void {
    const { duration } = this.#run.log;
    const length = Math.min(Math.max(duration, SHORTEST), LONGEST) / this.speed.peek();
    const next = (this.at.peek() ?? 0) + ((now - this.#last) / length) * duration;
    this.#last = now;
    this.seek(next);
    if (this.at.peek() === null) this.isPlaying.value = false;
    else this.#frame = requestAnimationFrame((later) => this.#tick(later));
  }

  pause(): void {
    cancelAnimationFrame(this.#frame);
    this.isPlaying.value = false;
  }

  reset(): void {
    this.pause();
    this.at.value = null;
  }
}
