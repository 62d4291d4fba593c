// A trace as training data: copied or downloaded in any of the formats.
import { useSignal } from "@preact/signals";
import { getJson, told } from "../api/client";
import { EXPORT_FORMATS, type ExportFormat, type Trace } from "../api/types";
import { Select } from "../ui/fields";
import { copyText, download } from "../ui/copy";
import { Icon } from "../ui/icon";

const NAMES: Record<ExportFormat, string> = {
  tree: "tree",
  sft: "SFT",
  step_values: "step values",
  preferences: "preferences",
  linearised: "linearised search",
  groups: "GRPO groups",
};

/** The rows as JSON lines. */
async function rowsOf(trace: Trace, format: ExportFormat): Promise<string[]> {
  const path = `/v1/traces/${encodeURIComponent(trace.id)}`;
  if (format === "tree") return [JSON.stringify(await getJson<unknown>(path))];
  const list = await getJson<{ data: unknown[] }>(`${path}?format=${format}`);
  return list.data.map((row) => JSON.stringify(row));
}

export function Exports({ trace }: { trace: Trace }) {
  const format = useSignal<ExportFormat>("tree");
  const told_ = useSignal("");
  const use = async (act: (rows: string[]) => Promise<string> | string) => {
    told_.value = "";
    try {
      const rows = await rowsOf(trace, format.value);
      told_.value = rows.length === 0 ? "This trace has no rows in the format." : await act(rows);
    } catch (problem) {
      told_.value = told(problem);
    }
  };
  const count = (rows: string[]) => `${rows.length} ${rows.length === 1 ? "row" : "rows"}`;
  const copy = async (rows: string[]) => {
    const isCopied = await copyText(rows.join("\n"));
    return isCopied ? `${count(rows)} copied.` : "The browser gave no access to the clipboard.";
  };
  const save = (rows: string[]) => {
    const name = `${trace.id}.${format.value}.jsonl`;
    download(name, `${rows.join("\n")}\n`, "application/x-ndjson");
    return `${count(rows)} saved as ${name}.`;
  };
  return (
    <section class="exports" aria-label="Export">
      <Select
        label="Format"
        isBare
        value={format.value}
        options={EXPORT_FORMATS.map((name) => [name, NAMES[name]] as const)}
        onChange={(value) => (format.value = value as ExportFormat)}
      />
      <button onClick={() => void use(copy)}>
        <Icon name="copy" /> Copy
      </button>
      <button onClick={() => void use(save)}>
        <Icon name="down" /> Download
      </button>
      <span role="status" class="hint">
        {told_.value}
      </span>
    </section>
  );
}
