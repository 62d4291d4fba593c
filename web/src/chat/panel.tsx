// The side panel: how the next answer is asked for.
import { SearchFields } from "../search/fields";
import { Check, Field, Select, TextArea } from "../ui/fields";
import { type ChatSettings, settings } from "./settings";

const EFFORTS = [
  ["", "the model's"],
  ["none", "none"],
  ["low", "low: one answer"],
  ["medium", "medium: 4 votes"],
  ["high", "high: 16 votes"],
] as const;

export function Panel() {
  const { value } = settings;
  const set = (name: keyof ChatSettings) => (text: string) =>
    (settings.value = { ...settings.value, [name]: text });
  const check = (name: keyof ChatSettings) => (isOn: boolean) =>
    (settings.value = { ...settings.value, [name]: isOn });
  return (
    <aside class="panel" aria-label="Settings of the answer">
      <h2>Search</h2>
      <SearchFields
        withPlain
        settings={value.search}
        onChange={(search) => (settings.value = { ...settings.value, search })}
      />
      <h2>Sampling</h2>
      <div class="fields">
        <div class="field-row">
          <Field label="temperature" value={value.temperature} onChange={set("temperature")} />
          <Field label="top_p" value={value.topP} onChange={set("topP")} />
          <Field label="longest answer" value={value.maxTokens} onChange={set("maxTokens")} />
          <Field label="seed" value={value.seed} placeholder="random" onChange={set("seed")} />
        </div>
        <Select
          label="Reasoning effort"
          value={value.effort}
          options={EFFORTS}
          onChange={set("effort")}
        />
      </div>
      <h2>Prompt</h2>
      <div class="fields">
        <TextArea label="system message" value={value.system} onChange={set("system")} />
      </div>
      <h2>Structure and tools</h2>
      <div class="fields">
        <TextArea
          label="JSON schema of the answer"
          value={value.schema}
          placeholder={'{"type": "object", "properties": …}'}
          onChange={set("schema")}
        />
        <TextArea
          label="functions that the model may call (JSON)"
          value={value.tools}
          placeholder={'[{"type": "function", "function": {…}}]'}
          onChange={set("tools")}
        />
        <Check
          label="Run the model's Python (needs --allow-code-execution)"
          checked={value.runsCode}
          onChange={check("runsCode")}
        />
        <Check
          label="Keep plain answers as traces"
          checked={value.store}
          onChange={check("store")}
        />
      </div>
    </aside>
  );
}
