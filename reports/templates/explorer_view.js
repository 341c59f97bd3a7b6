"use strict";
// What one sample looks like: a row of the list, and the details beside it. Text only ever becomes text, never markup.

const SampleView = (() => {
  const { element } = Page;
  const DIAGNOSTICS = {
    confidence: ["Sure", "largest probability at the first answer token"],
    entropy: ["Entropy", "of the student at the first answer token, nats"],
    nll: ["NLL", "negative log-likelihood of the gold answer, nats per token"],
    teacher_kl: ["KL", "KL(teacher || student), mean over the gold answer's tokens, nats per token"],
  };
  const ABOUT_REPLIES =
    "▲ and ▼: scores above or below the baseline. A question of a benchmark has no β: weights exist for training samples only.";
  const ABOUT_WEIGHTS =
    "β: the weight at the last step at which the sample was recorded. The scale is logarithmic, from the student's lowest " +
    "weight to its highest; the tick is the median.";
  const MARKS = { right: "✓", wrong: "✗", partly: "◐", none: "–" };

  const verdict = (score) => (Number.isNaN(score) ? "none" : score >= 1 ? "right" : score <= 0 ? "wrong" : "partly");
  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)} %`);
  const number = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
  const beta = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());

  /** A recipe may break after + and @. */
  function recipe(name) {
    const code = element("code");
    for (const part of name.split(/(?<=[+@])/)) code.append(part, element("wbr"));
    return code;
  }

  function thumbnail(picture) {
    if (picture === null || picture === "lost") {
      return element("span", { class: "thumb none" }, picture === null ? "no picture" : "not kept");
    }
    const { thumbnail: src, pixel } = picture;
    return element("img", { class: pixel ? "thumb pixel" : "thumb", src, alt: "", loading: "lazy", decoding: "async" });
  }

  /** One small square per student: filled right, hollow wrong, half partly. */
  function marks(questions, row) {
    const size = 9;
    const path = { right: "", wrong: "", partly: "" };
    questions.present.forEach((k, x) => {
      const found = verdict(questions.scores[k][row]);
      if (found === "right") path.right += `M${x * size} 1h7v7h-7z`;
      if (found === "wrong") path.wrong += `M${x * size + 0.6} 1.6h5.8v5.8h-5.8z`;
      if (found === "partly") path.partly += `M${x * size} 8h7v-7z`;
    });
    const space = "http://www.w3.org/2000/svg";
    const drawn = document.createElementNS(space, "svg");
    const width = questions.present.length * size;
    const attributes = { class: "marks", viewBox: `0 0 ${width} 9`, width, height: 9, "aria-hidden": "true" };
    for (const [name, value] of Object.entries(attributes)) drawn.setAttribute(name, value);
    for (const [name, d] of Object.entries(path)) {
      if (!d) continue;
      const part = document.createElementNS(space, "path");
      part.setAttribute("class", name);
      part.setAttribute("d", d);
      drawn.append(part);
    }
    return drawn;
  }

  function listed(picture, text, meta, extra) {
    return [
      thumbnail(picture),
      element("span", { class: "ask" }, text.replace(/\s+/g, " ")),
      element("span", { class: "meta" }, ...meta),
      element("span", { class: "tally" }, ...extra),
    ];
  }

  function questionRow(questions, row) {
    const right = questions.compared.filter((k) => questions.scores[k][row] >= 1).length;
    const of = questions.compared.filter((k) => !Number.isNaN(questions.scores[k][row])).length;
    const group = questions.word("group", row);
    const place = questions.data.protocols[questions.column.protocol[row]].title + (group ? ` · ${group}` : "");
    const gold = element("span", { class: "gold" }, "gold ", element("b", {}, questions.word("gold", row)));
    const said = element("span", { title: `${right} of ${of} students right` }, `${right}/${of} right`);
    const tally = [said, marks(questions, row)];
    return listed(questions.picture(row), questions.text(row), [gold, element("span", {}, place)], tally);
  }

  function trainingRow(training, row, weight) {
    const found = training.beta(weight, row);
    const tally = [element("span", {}, "β ", element("b", {}, found === null ? "–" : beta(found.value)))];
    tally.push(element("span", {}, training.column.correct[row] ? "teacher right" : "teacher wrong"));
    if (training.column.noisy[row]) tally.push(element("em", {}, "label replaced"));
    if (training.column.blind[row]) tally.push(element("em", {}, "teacher blind"));
    const label = element("span", { class: "gold" }, "label ", element("b", {}, training.word("answer", row)));
    const where = element("span", {}, training.word("benchmark", row) || training.word("id", row));
    return listed(training.picture(row), training.text(row), [label, where], tally);
  }

  // ---- details ----

  function picture(found, text) {
    if (found === null) return element("p", { class: "nopicture" }, "This question shows no picture.");
    if (found === "lost") return element("p", { class: "nopicture" }, "The run did not keep this picture.");
    const image = element("img", {
      class: found.pixel ? "pixel" : null,
      src: found.whole ? found.full : found.thumbnail,
      alt: "The picture that is asked about",
    });
    const button = element("button", { type: "button", class: "picture", title: "Enlarge the picture" }, image);
    button.addEventListener("click", () => {
      const small = !found.whole || Math.max(found.width, found.height) < 400;
      Page.enlarge([{ src: image.getAttribute("src"), alt: image.alt, title: text, small, pixel: found.pixel }], 0);
    });
    const size = `${found.width} × ${found.height} pixels${found.whole ? "" : ", shown as a thumbnail"}`;
    return element("figure", { class: "shown" }, button, element("figcaption", {}, size));
  }

  function asked(text, facts) {
    const terms = facts.map(([name, ...value]) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value)));
    return element("div", { class: "asked" }, element("p", { class: "question" }, text), element("dl", {}, ...terms));
  }

  function table(heads, rows, caption) {
    const head = element("tr", {}, ...heads.map(([text, title]) => element("th", { scope: "col", title }, text)));
    const made = element("table", { class: "said" }, element("caption", { class: "away" }, caption));
    made.append(element("thead", {}, head), element("tbody", {}, ...rows));
    return element("div", { class: "said-box", tabindex: "0", role: "region", "aria-label": caption }, made);
  }

  function level(share) {
    return element("span", { class: "level", "aria-hidden": "true", style: `--w:${(100 * share).toFixed(1)}%` });
  }

  function replyRow(questions, k, row, baseline) {
    const student = questions.data.students[k];
    const said = questions.reply(k, row);
    const found = verdict(said === null ? NaN : said.score);
    const flip = k === baseline || said === null ? 0 : questions.flip(k, baseline, row);
    const name = element("th", { scope: "row" }, recipe(student.name));
    if (k === baseline) name.append(element("small", {}, "baseline"));
    else if (flip === 1 || flip === -1) {
      const [arrow, words] = flip === 1 ? ["▲", "above the baseline"] : ["▼", "below the baseline"];
      const attributes = { class: flip === 1 ? "gained" : "lost", title: words, role: "img", "aria-label": words };
      name.append(" ", element("span", attributes, arrow));
    }
    const reply = element("td", { class: "reply" });
    if (said === null) reply.append(element("i", {}, "no reply"));
    else {
      reply.append(said.text === "" ? element("i", {}, "empty reply") : element("b", {}, said.text));
      if (said.bad) reply.append(element("small", {}, "no answer could be read from it"));
      else if (said.read !== said.text) reply.append(element("small", {}, `read as ${said.read}`));
      if (found === "partly") reply.append(element("small", {}, `scores ${said.score.toFixed(2)} of 1`));
    }
    const mark = element("td", { class: `mark ${found}` }, element("span", { "aria-hidden": "true" }, MARKS[found]));
    mark.append(element("span", { class: "away" }, found === "none" ? "no reply" : found));
    const measured = questions.diagnosed.map((diagnostic) => {
      const value = questions.diagnostic(diagnostic, k, row);
      if (diagnostic !== "confidence") return element("td", { class: "num" }, number(value));
      return element("td", { class: "num" }, percent(value), value === null ? null : level(value));
    });
    return element("tr", { class: student.kind }, name, mark, reply, ...measured);
  }

  function teacherSays(questions, row) {
    if (questions.teacher === null) return [];
    const said = questions.reply(questions.teacher, row);
    if (said === null) return [];
    const found = verdict(said.score);
    const sure = questions.diagnostic("confidence", questions.teacher, row);
    const several = questions.present.filter((k) => questions.data.students[k].kind === "teacher").length > 1;
    const whose = several ? ` (${questions.data.students[questions.teacher].name})` : "";
    const how = ` ${MARKS[found]} ${found}${sure === null ? "" : `, ${percent(sure)} sure`}${whose}`;
    return [["Teacher", element("b", {}, said.text || "(empty reply)"), how]];
  }

  /** The details of a question: picture, text, gold, and every student's reply. */
  function question(questions, row, baseline) {
    const protocol = questions.data.protocols[questions.column.protocol[row]];
    const group = questions.word("group", row);
    const facts = [["Gold", element("b", {}, questions.word("gold", row))], ...teacherSays(questions, row)];
    facts.push(["Benchmark", `${protocol.title}${group ? ` · ${group}` : ""}`]);
    facts.push(["Protocol", `${protocol.name} version ${protocol.version}`]);
    facts.push(["Question", element("code", {}, questions.word("id", row))]);
    facts.push(["Cluster", element("code", {}, questions.word("cluster", row))]);
    const measured = questions.diagnosed.map((name) => DIAGNOSTICS[name]);
    const heads = [["Student", ""], ["", "right or wrong"], ["Reply", ""], ...measured];
    const about = measured.map(([name, meaning]) => `${name}: ${meaning}. `).join("");
    const rows = questions.present.map((k) => replyRow(questions, k, row, baseline));
    const text = questions.text(row);
    return [
      element("div", { class: "subject" }, picture(questions.picture(row), text), asked(text, facts)),
      table(heads, rows, "Every student's reply"),
      element("p", { class: "small" }, about + ABOUT_REPLIES),
    ];
  }

  function betaRow(training, weight, row) {
    const w = training.weights[weight];
    const found = training.beta(weight, row);
    const name = element("th", { scope: "row" }, recipe(w.student));
    if (training.several.has(w.student)) name.append(element("small", {}, `channel ${w.channel}`));
    const value = element("td", {}, element("b", {}, beta(found.value)));
    const axis = element("td", { class: "axis" });
    if (found.value > 0 && w.high > w.low) {
      const place = (x) => `${((100 * Math.log(x / w.low)) / Math.log(w.high / w.low)).toFixed(1)}%`;
      const style = `--p:${place(found.value)};--m:${place(w.middle)}`;
      axis.append(element("span", { class: "place", style, "aria-hidden": "true" }, element("i"), element("b")));
      axis.append(element("small", {}, element("span", {}, beta(w.low)), element("span", {}, beta(w.high))));
    }
    return element("tr", {}, name, value, axis, element("td", { class: "num" }, String(found.step)));
  }

  /** The details of a training sample: what was asked and taught, and every weight that was recorded for it. */
  function sample(training, row) {
    const facts = [["Label", element("b", {}, training.word("answer", row))]];
    if (training.column.noisy[row]) {
      facts.push(["Right answer", element("b", {}, training.word("clean", row)), " (the label was replaced)"]);
    }
    const entropy = training.column.entropy[row];
    const unsure = entropy === null ? "" : `, entropy ${number(entropy / 1000)} nats`;
    facts.push(["Teacher", `${training.column.correct[row] ? "right" : "wrong"}${unsure}`]);
    if (training.column.blind[row]) facts.push(["Blind", "the teacher did not see this picture"]);
    facts.push(["Benchmark", training.word("benchmark", row) || "–"]);
    facts.push(["Sample", element("code", {}, training.word("id", row))]);
    const runs = new Set(training.column.run);
    if (runs.size > 1) facts.push(["Run", training.word("run", row)]);
    const shown = training.weights.map((_, weight) => weight).filter((weight) => training.beta(weight, row) !== null);
    const rows = shown.map((weight) => betaRow(training, weight, row));
    const heads = [
      ["Student", ""],
      ["β", "weight at the last record of this sample"],
      ["among this student's samples", ""],
      ["Step", "of that record"],
    ];
    const text = training.text(row);
    return [
      element("div", { class: "subject" }, picture(training.picture(row), text), asked(text, facts)),
      table(heads, rows, "The weight that every student gave"),
      element("p", { class: "small" }, ABOUT_WEIGHTS),
    ];
  }

  return { questionRow, trainingRow, question, sample };
})();
