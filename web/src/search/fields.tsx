// The form of a search: strategy, sizes, budget, reward.
import { strategies } from "../api/models";
import { Field, Select, TextArea } from "../ui/fields";
import { CHECKS, REWARDS, type RewardSettings, type SearchSettings, STRATEGIES } from "./settings";
import { strategyName } from "../ui/names";

interface FieldsProps {
  settings: SearchSettings;
  onChange: (settings: SearchSettings) => void;
  /** Offer a plain answer, too. */
  withPlain?: boolean;
}

const SIZES: [keyof SearchSettings, string, string][] = [
  ["n", "n", "How many samples, beams or particles"],
  ["branch", "branch", "Children of a node"],
  ["iterations", "iterations", "Rounds of the search"],
  ["maxDepth", "depth", "Steps of an answer at most"],
  ["exploration", "exploration", "The constant of the upper confidence bound"],
  ["threshold", "threshold", "Value at which the search ends"],
  ["cost", "cost", "What one more answer may cost, in value"],
  ["delimiter", "step ends with", "Where a step ends, \\n for a line end"],
];

export function SearchFields({ settings, onChange, withPlain }: FieldsProps) {
  const set = (name: keyof SearchSettings) => (value: string) =>
    onChange({ ...settings, [name]: value });
  const listed = strategies.value.length > 0 ? strategies.value : Object.keys(STRATEGIES);
  const names = listed.map((name) => [name, strategyName(name)] as const);
  const options = withPlain ? [["", "none: a plain answer"] as const, ...names] : names;
  const facts = STRATEGIES[settings.strategy];
  const sizes = SIZES.filter(([name]) => !facts || facts.fields.includes(name));
  return (
    <div class="fields">
      <Select
        label="Strategy"
        value={settings.strategy}
        options={options}
        onChange={set("strategy")}
      />
      {facts && <p class="hint">{facts.says}</p>}
      {settings.strategy !== "" && (
        <>
          <div class="field-row">
            {sizes.map(([name, label, title]) => (
              <Field
                key={name}
                label={label}
                title={title}
                value={settings[name] as string}
                placeholder={facts?.defaults[name] ?? (name === "delimiter" ? "blank line" : "")}
                onChange={set(name)}
              />
            ))}
          </div>
          <div class="field-row">
            <Field
              label="token budget"
              title="Generated tokens of all branches, a hard limit"
              value={settings.budgetTokens}
              placeholder="none"
              onChange={set("budgetTokens")}
            />
            <Field
              label="seconds"
              title="Time of the whole search, a hard limit"
              value={settings.budgetSeconds}
              placeholder="none"
              onChange={set("budgetSeconds")}
            />
          </div>
          <RewardFields
            reward={settings.reward}
            onChange={(reward) => onChange({ ...settings, reward })}
          />
          <details class="more">
            <summary>More fields of search</summary>
            <TextArea
              label="JSON that is added to the search"
              value={settings.more}
              placeholder={'{"aggregate": "min"}'}
              onChange={set("more")}
            />
          </details>
        </>
      )}
    </div>
  );
}

interface RewardProps {
  reward: RewardSettings;
  onChange: (reward: RewardSettings) => void;
}

function RewardFields({ reward, onChange }: RewardProps) {
  const set = (name: keyof RewardSettings) => (value: string) =>
    onChange({ ...reward, [name]: value });
  const { kind, check } = reward;
  return (
    <>
      <Select label="Reward" value={kind} options={REWARDS} onChange={set("kind")} />
      {kind === "verifier" && (
        <Select label="Check" value={check} options={CHECKS} onChange={set("check")} />
      )}
      {kind === "verifier" && (check === "math" || check === "exact") && (
        <Field label="right answer" value={reward.answer} onChange={set("answer")} />
      )}
      {kind === "verifier" && check === "regex" && (
        <Field label="pattern" value={reward.pattern} onChange={set("pattern")} />
      )}
      {kind === "verifier" && check === "json_schema" && (
        <TextArea label="schema" value={reward.schema} onChange={set("schema")} />
      )}
      {kind === "verifier" && check === "python" && (
        <TextArea
          label="tests, one statement a line"
          value={reward.tests}
          placeholder="assert median([3, 1, 2]) == 2"
          onChange={set("tests")}
        />
      )}
      {kind === "judge" && (
        <TextArea
          label="question to the judge, answered by yes or no"
          value={reward.instruction}
          placeholder="Is the answer correct?"
          onChange={set("instruction")}
        />
      )}
    </>
  );
}
