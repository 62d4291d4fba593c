// One search that runs: the request, its log, its end.
import { signal } from "@preact/signals";
import { ask, getJson, isAbort, told } from "../api/client";
import { chunks } from "../api/sse";
import type { Chunk, SearchReport, Trace, Usage } from "../api/types";
import { framed } from "../ui/framed";
import { logOf, TreeLog } from "./tree";

export type RunState = "idle" | "running" | "done" | "stopped" | "failed";

export class SearchRun {
  readonly state = signal<RunState>("idle");
  /** Counts changes of the log: who draws the tree reads it. */
  readonly version = signal(0);
  readonly answer = signal("");
  readonly error = signal("");
  readonly report = signal<SearchReport | null>(null);
  readonly usage = signal<Usage | null>(null);
  log = new TreeLog();
  /** Counts the searches that were shown; one that is loaded again is the same. */
  readonly generation = signal(0);
  strategy = "";
  startedAt = 0;
  endedAt = 0;
  #abort: AbortController | null = null;
  #touch = framed(() => (this.version.value += 1));

  get elapsed(): number {
    if (this.state.value === "idle") return 0;
    return (this.state.value === "running" ? performance.now() : this.endedAt) - this.startedAt;
  }

  #begin(strategy: string): AbortSignal {
    this.stop();
    this.#abort = new AbortController();
    this.log = new TreeLog();
    this.generation.value += 1;
    this.strategy = strategy;
    this.startedAt = performance.now();
    this.answer.value = "";
    this.error.value = "";
    this.report.value = null;
    this.usage.value = null;
    this.state.value = "running";
    this.version.value += 1;
    return this.#abort.signal;
  }

  #end(state: RunState, error = ""): void {
    this.endedAt = performance.now();
    this.error.value = error;
    this.state.value = state;
    this.version.value += 1;
  }

  /** Asks for a searched answer and follows it to its end. */
  async start(body: Record<string, unknown>, strategy: string): Promise<void> {
    const own = this.#begin(strategy);
    try {
      const options = { body: { ...body, stream: true }, signal: own };
      const response = await ask("/v1/chat/completions", options);
      for await (const chunk of chunks<Chunk>(response)) this.#take(chunk);
      if (own.aborted) return;
      await this.#settle(own);
      this.#end("done");
    } catch (error) {
      // A later search may have taken this one's place.
      if (own !== this.#abort?.signal) return;
      this.#end(isAbort(error) ? "stopped" : "failed", isAbort(error) ? "" : told(error));
    }
  }

  #take(chunk: Chunk): void {
    if (chunk.search_event) this.feed(chunk.search_event);
    for (const choice of chunk.choices ?? []) {
      if (choice.index === 0 && choice.delta?.content) this.answer.value += choice.delta.content;
    }
    if (chunk.search) this.report.value = chunk.search;
    if (chunk.usage) this.usage.value = chunk.usage;
  }

  /** Takes an event of a search that somebody else reads, such as a chat. */
  feed(event: NonNullable<Chunk["search_event"]>): void {
    this.log.push({ at: performance.now() - this.startedAt, event });
    this.#touch();
  }

  /** Begins to be fed. */
  watch(strategy: string): void {
    this.#begin(strategy);
  }

  /** What was fed is over. */
  async watched(report: SearchReport | null, answer: string): Promise<void> {
    this.report.value = report;
    this.answer.value = answer;
    await this.#settle().catch(() => {});
    this.#end(report ? "done" : "stopped");
  }

  /** Loads the record: it has what events do not tell. */
  async #settle(abort?: AbortSignal): Promise<void> {
    const id = this.report.value?.trace_id;
    if (!id) return;
    const options = abort ? { signal: abort, quiet: true } : { quiet: true };
    const trace = await getJson<Trace>(`/v1/traces/${encodeURIComponent(id)}`, options).catch(
      (error: unknown) => {
        if (isAbort(error)) throw error;
        // The tree is there without it.
        return null;
      },
    );
    if (trace && !trace.is_redacted) this.adopt(trace);
  }

  adopt(trace: Trace): void {
    const whole = this.log.at(this.log.length);
    const isSame = whole.nodes.length === trace.nodes.length && this.log.length > 0;
    if (isSame) this.log.setTrace(trace);
    else this.log = logOf(trace);
    this.version.value += 1;
  }

  /** Shows a search of the past. */
  load(trace: Trace): void {
    this.stop();
    if (this.log.trace?.id !== trace.id) this.generation.value += 1;
    this.strategy = trace.strategy;
    this.log = logOf(trace);
    const end = trace.chosen[0];
    this.answer.value = end === undefined ? "" : this.log.at(this.log.length).text(end);
    this.startedAt = 0;
    this.endedAt = trace.timings.total_ms;
    this.report.value = null;
    this.error.value = "";
    this.state.value = "done";
    this.version.value += 1;
  }

  stop(): void {
    this.#abort?.abort();
    this.#abort = null;
    if (this.state.peek() === "running") this.#end("stopped");
  }
}
