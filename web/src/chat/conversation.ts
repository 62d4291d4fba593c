// Conversations as they are kept, exported and imported.
import type { SearchReport, ToolCall, ToolOutput, Usage } from "../api/types";

/** One answer; an assistant's turn has several after it was asked again. */
export interface Answer {
  text: string;
  reasoning: string;
  toolCalls: ToolCall[];
  toolOutputs: ToolOutput[];
  finish: string | null;
  model: string;
  strategy: string;
  search: SearchReport | null;
  usage: Usage | null;
  error: string;
  /** Milliseconds to the first text, and to the end. */
  firstMs: number;
  totalMs: number;
}

export interface UserTurn {
  role: "user";
  id: string;
  text: string;
}

/** What a tool answered: the user plays the tool. */
export interface ToolTurn {
  role: "tool";
  id: string;
  callId: string;
  name: string;
  text: string;
}

export interface AssistantTurn {
  role: "assistant";
  id: string;
  variants: Answer[];
  shown: number;
}

export type Turn = UserTurn | ToolTurn | AssistantTurn;

export interface Conversation {
  id: string;
  title: string;
  updated: number;
  turns: Turn[];
}

/** `crypto.randomUUID` is there on secure origins alone; a server on a LAN is none. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(): Conversation {
  return { id: newId(), title: "", updated: Date.now(), turns: [] };
}

export function newAnswer(model: string, strategy: string): Answer {
  return {
    text: "",
    reasoning: "",
    toolCalls: [],
    toolOutputs: [],
    finish: null,
    model,
    strategy,
    search: null,
    usage: null,
    error: "",
    firstMs: 0,
    totalMs: 0,
  };
}

export function shownAnswer(turn: AssistantTurn): Answer | undefined {
  return turn.variants[turn.shown];
}

const TITLE_CHARS = 60;

export function titleOf(conversation: Conversation): string {
  const first = conversation.turns.find((turn) => turn.role === "user");
  const text = (first as UserTurn | undefined)?.text.replace(/\s+/g, " ").trim() ?? "";
  return text.length > TITLE_CHARS ? `${text.slice(0, TITLE_CHARS - 1)}…` : text || "New chat";
}

/** What a request says of the turns before `end`. */
export function messagesOf(turns: Turn[], end: number, system: string): unknown[] {
  const messages: unknown[] = [];
  if (system.trim() !== "") messages.push({ role: "system", content: system });
  for (const turn of turns.slice(0, end)) {
    if (turn.role === "user") messages.push({ role: "user", content: turn.text });
    else if (turn.role === "tool") {
      messages.push({ role: "tool", tool_call_id: turn.callId, content: turn.text });
    } else {
      const answer = shownAnswer(turn);
      if (answer) messages.push(message(answer));
    }
  }
  return messages;
}

function message(answer: Answer): unknown {
  const calls = answer.toolCalls.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  const content = answer.text === "" && calls.length > 0 ? null : answer.text;
  return { role: "assistant", content, ...(calls.length > 0 ? { tool_calls: calls } : {}) };
}

const FORMAT = "ponder.conversations.v1";

export function exported(conversations: Conversation[]): string {
  return JSON.stringify({ format: FORMAT, conversations }, null, 1);
}

/** The conversations of a file, each checked and under a new id: importing overwrites nothing. */
export function imported(text: string): Conversation[] {
  const file = JSON.parse(text) as { format?: unknown; conversations?: unknown };
  if (file.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error(`This is no file of conversations (format ${FORMAT}).`);
  }
  return file.conversations.map((it: unknown) => {
    const { title, updated, turns } = it as Partial<Conversation>;
    if (!Array.isArray(turns)) throw new Error("A conversation of the file has no turns.");
    const known = (turns as unknown[]).map(checked).filter((turn) => turn !== null);
    return { id: newId(), title: String(title ?? ""), updated: Number(updated) || 0, turns: known };
  });
}

function checked(value: unknown): Turn | null {
  const turn = value as Record<string, unknown>;
  const id = newId();
  const { role } = turn;
  const text = String(turn["text"] ?? "");
  if (role === "user") return { role, id, text };
  if (role === "tool") {
    const [callId, name] = [String(turn["callId"] ?? ""), String(turn["name"] ?? "")];
    return { role, id, text, callId, name };
  }
  const found = turn["variants"];
  if (role !== "assistant" || !Array.isArray(found)) return null;
  const variants = found.map((it) => checkedAnswer(it as Partial<Answer>));
  const shown = Math.min(Math.max(Number(turn["shown"]) || 0, 0), variants.length - 1);
  return { role, id, variants, shown };
}

/** Fields that are missing or of another kind get their defaults. */
function checkedAnswer(found: Partial<Answer>): Answer {
  const answer = newAnswer("", "");
  const known = Object.entries(answer).map(([name, initial]) => {
    const value = found[name as keyof Answer];
    const isSame = initial === null || typeof value === typeof initial;
    return [name, value !== undefined && isSame ? value : initial];
  });
  return Object.fromEntries(known) as Answer;
}
