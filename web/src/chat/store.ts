// The conversations, which one is open, and what is being written to it.
import { batch, computed, signal } from "@preact/signals";
import { ask, isAbort, told } from "../api/client";
import { model } from "../api/models";
import { chunks } from "../api/sse";
import type { Chunk } from "../api/types";
import { SearchRun } from "../search/run";
import { framed } from "../ui/framed";
import {
  type Answer,
  type AssistantTurn,
  type Conversation,
  messagesOf,
  newAnswer,
  newConversation,
  newId,
  titleOf,
  type Turn,
} from "./conversation";
import { readAll, remove, write } from "./database";
import { requestFields, settings } from "./settings";
import { take } from "./take";

export const conversations = signal<Conversation[]>([]);
export const current = signal<Conversation>(newConversation());
/** Conversations are changed in place while they are written: this counts the changes. */
export const version = signal(0);
/** The turn that is being written, wherever it is. */
export const writing = signal<{ turn: string; stop: () => void } | null>(null);
/** What is wrong with the settings. */
export const problem = signal("");
/** Searches whose trees the page still has, by answer. */
export const runs = new WeakMap<Answer, SearchRun>();

export const isWriting = computed(() => writing.value !== null);

export async function load(): Promise<void> {
  const all = await readAll();
  conversations.value = all.sort((a, b) => b.updated - a.updated);
}

function changed(conversation: Conversation): void {
  conversation.updated = Date.now();
  if (conversation.title === "") conversation.title = titleOf(conversation);
  const others = conversations.value.filter((it) => it.id !== conversation.id);
  batch(() => {
    conversations.value = [conversation, ...others];
    version.value += 1;
  });
  void write(conversation);
}

export function openConversation(id: string): void {
  const found = conversations.value.find((it) => it.id === id);
  if (found) current.value = found;
  else if (current.value.id !== id) current.value = newConversation();
}

export function startNew(): void {
  current.value = newConversation();
}

export function drop(id: string): void {
  conversations.value = conversations.value.filter((it) => it.id !== id);
  if (current.value.id === id) startNew();
  void remove(id);
}

export function add(imported: Conversation[]): void {
  for (const conversation of imported) void write(conversation);
  const all = [...imported, ...conversations.value];
  conversations.value = all.sort((a, b) => b.updated - a.updated);
}

export function rename(conversation: Conversation, title: string): void {
  conversation.title = title.trim() || titleOf({ ...conversation, title: "" });
  changed(conversation);
}

/** Adds a turn of the user and asks for the answer. */
export function say(text: string): void {
  const conversation = current.value;
  conversation.turns.push({ role: "user", id: newId(), text });
  answerLast(conversation);
}

/** Tells what a tool answered; once all calls have their answers, the model goes on. */
export function tell(turn: AssistantTurn, callId: string, name: string, text: string): void {
  const conversation = current.value;
  const calls = turn.variants[turn.shown]?.toolCalls ?? [];
  conversation.turns.push({ role: "tool", id: newId(), callId, name, text });
  const at = conversation.turns.indexOf(turn);
  const answered = conversation.turns.slice(at + 1).filter((it) => it.role === "tool");
  if (answered.length >= calls.length) answerLast(conversation);
  else changed(conversation);
}

/** Replaces a turn of the user; what followed it goes. */
export function edit(turn: Turn, text: string): void {
  const conversation = current.value;
  const at = conversation.turns.indexOf(turn);
  if (at < 0 || turn.role !== "user") return;
  conversation.turns.splice(at, Infinity, { role: "user", id: newId(), text });
  answerLast(conversation);
}

function answerLast(conversation: Conversation): void {
  const turn: AssistantTurn = { role: "assistant", id: newId(), variants: [], shown: 0 };
  conversation.turns.push(turn);
  again(turn);
}

/** Asks for another answer of a turn; what followed it goes, since it followed another one. */
export function again(turn: AssistantTurn): void {
  const conversation = current.value;
  stop();
  const at = conversation.turns.indexOf(turn);
  conversation.turns.length = at + 1;
  const { search, system } = settings.value;
  let fields: Record<string, unknown>;
  problem.value = "";
  try {
    fields = requestFields(settings.value);
  } catch (error) {
    problem.value = told(error);
    if (turn.variants.length === 0) conversation.turns.length = at;
    changed(conversation);
    return;
  }
  const answer = newAnswer(model.value?.id ?? "", search.strategy);
  turn.variants.push(answer);
  turn.shown = turn.variants.length - 1;
  const messages = messagesOf(conversation.turns, at, system);
  changed(conversation);
  void generate(conversation, turn, answer, { model: model.value?.id, messages, ...fields });
}

export function stop(): void {
  writing.value?.stop();
}

async function generate(
  conversation: Conversation,
  turn: AssistantTurn,
  answer: Answer,
  body: Record<string, unknown>,
): Promise<void> {
  const abort = new AbortController();
  const own = { turn: turn.id, stop: () => abort.abort() };
  writing.value = own;
  const run = body["search"] === undefined ? null : new SearchRun();
  if (run) {
    runs.set(answer, run);
    run.watch(answer.strategy);
  }
  const started = performance.now();
  const redraw = framed(() => (version.value += 1));
  try {
    const options = { body, signal: abort.signal };
    const response = await ask("/v1/chat/completions", options);
    for await (const chunk of chunks<Chunk>(response)) {
      take(answer, chunk, run);
      if (answer.firstMs === 0 && answer.text + answer.reasoning !== "") {
        answer.firstMs = performance.now() - started;
      }
      redraw();
    }
  } catch (error) {
    if (isAbort(error)) answer.finish = "stopped";
    else answer.error = told(error);
  }
  answer.totalMs = performance.now() - started;
  if (writing.value === own) writing.value = null;
  changed(conversation);
  await run?.watched(answer.search, answer.text);
}
