// Labelled inputs.
import { useId } from "preact/hooks";

interface FieldProps {
  label: string;
  value: string;
  onChange: (value: string) => void;
  placeholder?: string;
  title?: string;
  type?: "text" | "password" | "date";
}

export function Field(props: FieldProps) {
  const { label, value, onChange, placeholder, title } = props;
  const id = useId();
  // Preact's types tell the kinds of inputs apart; these are used in one way.
  const type = (props.type ?? "text") as "text";
  return (
    <div class="field" title={title}>
      <label for={id}>{label}</label>
      <input
        id={id}
        type={type}
        value={value}
        placeholder={placeholder}
        autocomplete="off"
        spellcheck={false}
        onInput={(event) => onChange(event.currentTarget.value)}
      />
    </div>
  );
}

export function TextArea({ label, value, onChange, placeholder, title }: FieldProps) {
  const id = useId();
  return (
    <div class="field wide" title={title}>
      <label for={id}>{label}</label>
      <textarea
        id={id}
        rows={3}
        value={value}
        placeholder={placeholder}
        spellcheck={false}
        onInput={(event) => onChange(event.currentTarget.value)}
      />
    </div>
  );
}

interface SelectProps {
  label: string;
  value: string;
  options: readonly (readonly [string, string])[];
  onChange: (value: string) => void;
  /** The label is for screen readers alone. */
  isBare?: boolean;
}

export function Select({ label, value, options, onChange, isBare }: SelectProps) {
  const id = useId();
  return (
    <div class={isBare ? "field bare" : "field wide"}>
      <label for={id} class={isBare ? "visually-hidden" : undefined}>
        {label}
      </label>
      <select id={id} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map(([name, text]) => (
          <option key={name} value={name} selected={name === value}>
            {text}
          </option>
        ))}
      </select>
    </div>
  );
}

interface CheckProps {
  label: string;
  checked: boolean;
  onChange: (checked: boolean) => void;
}

export function Check({ label, checked, onChange }: CheckProps) {
  return (
    <label class="check">
      <input
        type="checkbox"
        checked={checked}
        onChange={(event) => onChange(event.currentTarget.checked)}
      />
      <span>{label}</span>
    </label>
  );
}
