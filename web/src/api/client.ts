// Requests to the server that served this page, and nowhere else.
import { key, keyDialog } from "./key";
import { lost, reached } from "./connection";

/** An answer that is none: what the server said, or that it said nothing. */
export class ApiError extends Error {
  /** 0: no answer came. */
  readonly status: number;
  readonly code: string | null;
  readonly retryAfter: number | null;

  constructor(status: number, message: string, code: string | null, retryAfter: number | null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  get isLost(): boolean {
    return this.status === 0;
  }
}

export function connectionError(): ApiError {
  return new ApiError(0, "The connection to the server was lost.", null, null);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** What to tell the user of an error. */
export function told(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error instanceof ApiError && error.retryAfter !== null) {
    return `${error.message} (try again in ${error.retryAfter} s)`;
  }
  return error.message;
}

async function errorOf(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  let message = text || response.statusText || `status ${response.status}`;
  let code: string | null = null;
  try {
    const body = JSON.parse(text) as { error?: { message?: string; code?: string | null } };
    message = body.error?.message ?? message;
    code = body.error?.code ?? null;
  } catch {
    // A proxy's page, perhaps: its text is all there is to tell.
  }
  const after = Number(response.headers.get("retry-after"));
  return new ApiError(response.status, message, code, after > 0 ? after : null);
}

export interface Ask {
  method?: "GET" | "POST" | "DELETE";
  body?: unknown;
  signal?: AbortSignal;
  /** Whether a missing key opens the dialog. */
  quiet?: boolean;
}

/** A response with a status of success. */
export async function ask(path: string, options: Ask = {}): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key.value !== "") headers["authorization"] = `Bearer ${key.value}`;
  const init: RequestInit = {
    method: options.method ?? (options.body === undefined ? "GET" : "POST"),
    headers,
    cache: "no-store",
    credentials: "omit",
  };
  if (options.signal) init.signal = options.signal;
  if (options.body !== undefined) {
    headers["content-type"] = "application/json";
    init.body = JSON.stringify(options.body);
  }
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (isAbort(error)) throw error;
    lost();
    throw connectionError();
  }
  reached();
  if (response.ok) return response;
  if (response.status === 401 && !options.quiet) {
    keyDialog.value = key.value === "" ? "asked" : "refused";
  }
  throw await errorOf(response);
}

export async function getJson<T>(path: string, options: Ask = {}): Promise<T> {
  const response = await ask(path, options);
  return (await response.json()) as T;
}

export async function getText(path: string, options: Ask = {}): Promise<string> {
  const response = await ask(path, options);
  return response.text();
}
