// Server-sent events of a response's body.
import { ApiError, connectionError, isAbort } from "./client";
import { lost } from "./connection";

/** Splits text into the data of its events; what is unfinished waits for more. */
export class EventSplitter {
  #rest = "";

  push(text: string): string[] {
    this.#rest += text;
    const blocks = this.#rest.split(/\r?\n\r?\n/);
    this.#rest = blocks.pop() ?? "";
    return blocks.map(dataOf).filter((data) => data !== "");
  }
}

function dataOf(block: string): string {
  const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

/** The server says something every 15 seconds, if only a comment: longer silence is a fault. */
const SILENCE = 60_000;

type Reader = ReadableStreamDefaultReader<string>;

async function read(reader: Reader): ReturnType<Reader["read"]> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error("nothing came")), SILENCE);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * The chunks of a stream until `[DONE]`. A body that ends before that was cut: this is an error,
 * since half an answer must not look like a whole one.
 */
export async function* chunks<T>(response: Response): AsyncGenerator<T> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) throw connectionError();
  const splitter = new EventSplitter();
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) break;
      for (const data of splitter.push(value)) {
        if (data === "[DONE]") return;
        yield parsed<T>(data);
      }
    }
  } catch (error) {
    if (isAbort(error) || error instanceof ApiError) throw error;
    lost();
    throw connectionError();
  } finally {
    void reader.cancel().catch(() => {});
  }
  lost();
  throw connectionError();
}

function parsed<T>(data: string): T {
  const chunk = JSON.parse(data) as T & { error?: { message: string; code?: string | null } };
  if (chunk.error) {
    throw new ApiError(500, chunk.error.message, chunk.error.code ?? null, null);
  }
  return chunk;
}
