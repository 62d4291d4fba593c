// What colours, sizes and lines mean, and what colours stand for.
import { Select } from "../ui/fields";
import { COLOURINGS, type Colouring } from "./colouring";
import { fixed } from "./describe";

interface LegendProps {
  colouring: Colouring;
  range: [number, number];
  onChange: (colouring: Colouring) => void;
  hasRecord: boolean;
}

export function Legend({ colouring, range, onChange, hasRecord }: LegendProps) {
  return (
    <div class="legend">
      {hasRecord ? (
        <Select
          label="Colour by"
          isBare
          value={colouring}
          options={COLOURINGS}
          onChange={(value) => onChange(value as Colouring)}
        />
      ) : (
        <span>value</span>
      )}
      <span>{fixed(range[0], 2)}</span>
      <span class="ramp" aria-hidden="true" />
      <span>{fixed(range[1], 2)}</span>
      <span class="legend-path">chosen path</span>
      <span class="legend-size">size: visits</span>
    </div>
  );
}
