"use strict";
// What the explorer shows, as columns: loading the scripts beside the page, and choosing and ordering rows.

const Samples = (() => {
  const received = new Map();
  globalThis.sampleData = (name, value) => received.set(name, value);

  /** Load samples/NAME.js, once. A page opened from disk may not fetch files, but may load scripts. */
  function load(name) {
    if (received.has(name)) return Promise.resolve(received.get(name));
    return new Promise((resolve, reject) => {
      const script = Page.element("script", { src: `samples/${encodeURIComponent(name)}.js` });
      script.onload = () => {
        script.remove();
        if (received.has(name)) resolve(received.get(name));
        else reject(new Error(`samples/${name}.js does not hold what its name says`));
      };
      script.onerror = () => reject(new Error(`samples/${name}.js is not beside this page`));
      document.head.append(script);
    });
  }

  /** Text, search and pictures, which questions and training samples have in common. */
  class Rows {
    constructor(data) {
      this.data = data;
      this.column = data.columns;
      this.size = data.columns.id.length;
      this.texts = data.prompts.map((lines) => lines.map((line) => data.lines[line]).join("\n"));
      this.lower = null;
    }

    text(row) {
      return this.texts[this.column.prompt[row]];
    }

    word(name, row) {
      return this.data.strings[this.column[name][row]];
    }

    /** One flag per row: every word of the query occurs in the text or in one of the named columns. */
    search(query, names) {
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      const hit = new Uint8Array(this.size).fill(1);
      if (!words.length) return hit;
      this.lower ??= { texts: this.texts.map((t) => t.toLowerCase()), strings: this.data.strings.map((t) => t.toLowerCase()) };
      for (const word of words) {
        const texts = this.lower.texts.map((t) => t.includes(word));
        const strings = this.lower.strings.map((t) => t.includes(word));
        for (let row = 0; row < this.size; row++) {
          hit[row] &&= texts[this.column.prompt[row]] || names.some((name) => strings[this.column[name][row]]) ? 1 : 0;
        }
      }
      return hit;
    }

    /** Where a row's picture lies; null without one, "lost" where the run did not keep it. */
    picture(row) {
      const at = this.column.picture[row];
      if (at === -1) return null;
      if (at === -2) return "lost";
      const all = this.data.pictures;
      const [key, width, height] = [encodeURIComponent(all.key[at]), all.width[at], all.height[at]];
      const thumbnail = `${all.folder}/${key}.webp`;
      const place = all.place === undefined ? null : all.places[all.place[at]];
      const longest = Math.max(width, height);
      const full = place === null ? thumbnail : `${place}/${key}.png`;
      const whole = place !== null || longest <= all.longest;
      return { thumbnail, full, width, height, whole, pixel: longest <= all.pixelated };
    }

    /** Distinct values of a string column among rows that `when` accepts, with their counts, most first. */
    counts(name, when = () => true) {
      const found = new Map();
      for (let row = 0; row < this.size; row++) {
        if (when(row)) found.set(this.column[name][row], (found.get(this.column[name][row]) ?? 0) + 1);
      }
      return [...found].sort((a, b) => b[1] - a[1]);
    }
  }

  function chosen(size, keep, order) {
    const rows = [];
    for (let row = 0; row < size; row++) if (keep(row)) rows.push(row);
    if (order === null) return Uint32Array.from(rows);
    const missing = (row) => order[row] === null || Number.isNaN(order[row]);
    rows.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : order[a] - order[b]) || a - b);
    return Uint32Array.from(rows);
  }

  class Questions extends Rows {
    /** `answers`: one seed's replies; NaN stands where a student did not answer. */
    answer(answers) {
      this.answers = answers;
      const students = this.data.students;
      this.scores = students.map((_, k) => {
        const column = answers.answers[k];
        if (column === undefined) return null;
        return Float32Array.from(column, (outcome) => (outcome === null ? NaN : answers.outcomes[outcome][2]));
      });
      this.present = students.map((_, k) => k).filter((k) => this.scores[k] !== null);
      this.diagnosed = ["confidence", "entropy", "nll", "teacher_kl"].filter((name) => Object.keys(answers[name]).length > 0);
      const trained = this.present.filter((k) => students[k].kind === "student");
      this.compared = trained.length > 1 ? trained : this.present;
      this.teacher = this.present.find((k) => students[k].kind === "teacher") ?? null;
      this.spread = new Float32Array(this.size);
      this.mean = new Float32Array(this.size).fill(NaN);
      for (let row = 0; row < this.size; row++) this.weigh(row);
    }

    weigh(row) {
      let n = 0;
      let sum = 0;
      let squares = 0;
      for (const k of this.compared) {
        const score = this.scores[k][row];
        if (Number.isNaN(score)) continue;
        n += 1;
        sum += score;
        squares += score * score;
      }
      if (n === 0) return;
      this.mean[row] = sum / n;
      this.spread[row] = Math.max(0, squares / n - (sum / n) ** 2);
    }

    /** 1 where the student scores higher than the baseline, -1 lower, 0 equal, NaN where one of them did not answer. */
    flip(student, baseline, row) {
      return Math.sign((this.scores[student]?.[row] ?? NaN) - (this.scores[baseline]?.[row] ?? NaN));
    }

    flipped(wanted) {
      const against = wanted.student === "" ? this.compared : [Number(wanted.student)];
      const signs = { either: [1, -1], gained: [1], lost: [-1] }[wanted.direction];
      const baseline = Number(wanted.baseline);
      if (!this.present.includes(baseline)) return () => false;
      return (row) => against.some((k) => signs.includes(this.flip(k, baseline, row)));
    }

    reply(student, row) {
      const outcome = this.answers.answers[student]?.[row] ?? null;
      if (outcome === null) return null;
      const [reply, prediction, score, bad] = this.answers.outcomes[outcome];
      const strings = this.answers.strings;
      return { text: strings[reply], read: strings[prediction], score, bad: Boolean(bad) };
    }

    /** A diagnostic of a reply (confidence, entropy, nll, teacher_kl), or null where it was not recorded. */
    diagnostic(name, student, row) {
      const value = this.answers[name][student]?.[row] ?? null;
      return value === null ? null : value / 1000;
    }

    orders(name) {
      if (name === "asked") return null;
      if (name === "disputed") return this.spread.map((x) => -x);
      if (name === "hard") return this.mean;
      return this.answers.confidence[this.teacher] ?? null;
    }

    select(wanted) {
      const hit = this.search(wanted.text, ["id", "gold", "group"]);
      const flipped = wanted.flipped ? this.flipped(wanted) : () => true;
      const [protocol, group] = [wanted.protocol, wanted.group].map((v) => (v === "" ? null : Number(v)));
      const asked = this.teacher === null ? "" : wanted.teacher;
      const teacher = { "": () => true, right: (score) => score >= 1, wrong: (score) => score < 1 }[asked];
      const keep = (row) =>
        hit[row] === 1 &&
        (protocol === null || this.column.protocol[row] === protocol) &&
        (group === null || this.column.group[row] === group) &&
        (!wanted.disagree || this.spread[row] > 0) &&
        (asked === "" || teacher(this.scores[this.teacher][row])) &&
        flipped(row);
      return chosen(this.size, keep, this.orders(wanted.order));
    }
  }

  class Training extends Rows {
    constructor(data) {
      super(data);
      this.weights = data.weights.map((weight) => {
        const known = weight.beta.filter((b) => b !== null && b > 0).sort((a, b) => a - b);
        return { ...weight, low: known[0], high: known.at(-1), middle: known[Math.floor(known.length / 2)] };
      });
      const names = this.weights.map((w) => w.student);
      this.several = new Set(names.filter((name, k) => names.indexOf(name) !== k)); // students with more than one channel
      const distinct = this.weights.map((w) => new Set(w.beta).size);
      this.widest = distinct.indexOf(Math.max(...distinct)); // a weight per sample says more than one per task
    }

    /** A weight and the step at which it was recorded; null where the sample was not recorded for that student. */
    beta(weight, row) {
      const w = this.weights[weight];
      const value = w.beta[row - w.start] ?? null;
      return value === null ? null : { value, step: w.step[row - w.start] };
    }

    orders(wanted) {
      const weight = Number(wanted.weight);
      const signed = (sign, values) => values.map((v) => (v === null ? null : sign * v));
      const recorded = (what) => Array.from({ length: this.size }, (_, row) => this.beta(weight, row)?.[what] ?? null);
      if (wanted.order === "high") return signed(-1, recorded("value"));
      if (wanted.order === "low") return recorded("value");
      if (wanted.order === "unsure") return signed(-1, this.column.entropy);
      return signed(wanted.order === "late" ? -1 : 1, recorded("step"));
    }

    select(wanted) {
      const hit = this.search(wanted.text, ["id", "answer", "clean"]);
      const benchmark = wanted.benchmark === "" ? null : Number(wanted.benchmark);
      const is = (value, column, row) => value === "" || this.column[column][row] === Number(value);
      const keep = (row) =>
        hit[row] === 1 &&
        (benchmark === null || this.column.benchmark[row] === benchmark) &&
        is(wanted.noisy, "noisy", row) &&
        is(wanted.correct, "correct", row) &&
        is(wanted.blind, "blind", row);
      return chosen(this.size, keep, this.orders(wanted));
    }
  }

  return { load, Questions, Training };
})();
