// How the next answer is asked for.
import { kept } from "../persist";
import {
  defaultSearch,
  json,
  number,
  searchField,
  type SearchSettings,
} from "../search/settings";

export interface ChatSettings {
  system: string;
  temperature: string;
  topP: string;
  maxTokens: string;
  seed: string;
  effort: string;
  schema: string;
  tools: string;
  runsCode: boolean;
  store: boolean;
  search: SearchSettings;
}

export const settings = kept<ChatSettings>("ponder.chat", {
  system: "",
  temperature: "",
  topP: "",
  maxTokens: "",
  seed: "",
  effort: "",
  schema: "",
  tools: "",
  runsCode: false,
  store: false,
  search: defaultSearch(),
});

function tools(settings: ChatSettings): unknown[] | undefined {
  const listed = json(settings.tools, "Tools");
  const all = Array.isArray(listed) ? [...listed] : listed === undefined ? [] : [listed];
  if (settings.runsCode) all.push({ type: "code_interpreter" });
  return all.length > 0 ? all : undefined;
}

/** The request's fields, without model and messages. JSON leaves out what is undefined. */
export function requestFields(settings: ChatSettings): Record<string, unknown> {
  const schema = json(settings.schema, "The schema");
  return {
    temperature: number(settings.temperature, "Temperature"),
    top_p: number(settings.topP, "top_p"),
    max_tokens: number(settings.maxTokens, "Longest answer"),
    seed: number(settings.seed, "Seed"),
    reasoning_effort: settings.effort === "" ? undefined : settings.effort,
    response_format:
      schema === undefined
        ? undefined
        : { type: "json_schema", json_schema: { name: "answer", strict: true, schema } },
    tools: tools(settings),
    store: settings.store ? true : undefined,
    search: searchField(settings.search),
    stream: true,
    stream_options: { include_usage: true },
  };
}
