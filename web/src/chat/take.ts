// Puts a chunk of a stream into the answer that it is part of.
import type { Chunk } from "../api/types";
import type { SearchRun } from "../search/run";
import type { Answer } from "./conversation";

type Choice = NonNullable<Chunk["choices"]>[number];

export function take(answer: Answer, chunk: Chunk, run: SearchRun | null): void {
  if (chunk.search_event) run?.feed(chunk.search_event);
  for (const choice of chunk.choices ?? []) {
    if (choice.index === 0) takeChoice(answer, choice);
  }
  if (chunk.search) answer.search = chunk.search;
  if (chunk.usage) answer.usage = chunk.usage;
}

function takeChoice(answer: Answer, choice: Choice): void {
  const { delta } = choice;
  answer.text += delta?.content ?? "";
  answer.reasoning += delta?.reasoning_content ?? "";
  for (const part of delta?.tool_calls ?? []) {
    const call = (answer.toolCalls[part.index] ??= { id: "", name: "", arguments: "" });
    call.id = part.id ?? call.id;
    call.name = part.function?.name ?? call.name;
    call.arguments += part.function?.arguments ?? "";
  }
  answer.toolOutputs.push(...(choice.ponder_tool_outputs ?? []));
  answer.finish = choice.finish_reason ?? answer.finish;
}
