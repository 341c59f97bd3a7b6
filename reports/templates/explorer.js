"use strict";
// The explorer: tabs, filters, list and details, tied together. Starts when the reader comes near.

const Explorer = (() => {
  const NARROW = matchMedia("(max-width: 56rem)");
  const PHONE = matchMedia("(max-width: 40rem)");
  const { element } = Page;
  const find = (selector) => document.querySelector(`#explorer ${selector}`);
  const state = {
    tab: "questions",
    seed: null,
    questions: null,
    training: null,
    lists: {},
    row: { questions: null, training: null },
  };

  function options(select, pairs, value) {
    select.replaceChildren(...pairs.map(([key, text]) => element("option", { value: key }, text)));
    select.value = value ?? pairs[0]?.[0] ?? "";
  }

  function wanted(tab) {
    const form = find(`form[data-for=${tab}]`);
    const found = Object.fromEntries(new FormData(form));
    for (const button of form.querySelectorAll("[aria-pressed]")) {
      found[button.name] = button.getAttribute("aria-pressed") === "true";
    }
    return found;
  }

  // ---- details ----

  function details(tab) {
    const row = state.row[tab];
    const body = find(".detail-body");
    if (row === null) {
      body.replaceChildren();
    } else if (tab === "questions") {
      body.replaceChildren(...SampleView.question(state.questions, row, Number(wanted("questions").baseline)));
    } else {
      body.replaceChildren(...SampleView.sample(state.training, row));
    }
    const list = state.lists[tab];
    const place = row === null ? "" : `${(list.position() + 1).toLocaleString("en")} of ${list.size().toLocaleString("en")}`;
    find(".detail-inner").hidden = row === null;
    find(".place-in-list").textContent = place;
    find(".detail").scrollTop = 0;
    document.querySelector("#sheet .content").scrollTop = 0;
  }

  function picked(tab) {
    return (row, opened) => {
      state.row[tab] = row;
      if (tab !== state.tab) return;
      details(tab);
      if (!opened || row === null) return;
      const sheet = document.querySelector("#sheet");
      if (NARROW.matches && !sheet.open) {
        sheet.querySelector(".content").append(find(".detail-inner"));
        sheet.showModal();
      } else if (!NARROW.matches) find(".detail").focus({ preventScroll: true });
    };
  }

  function closed() {
    if (document.querySelector("#sheet").open) return; // the event comes late: a quick reader has opened the next one
    find(".detail").append(document.querySelector("#sheet .detail-inner"));
    find(`#list-${state.tab}`).focus({ preventScroll: true });
  }

  // ---- filters ----

  function refresh(tab, stay = true) {
    const started = performance.now();
    const model = state[tab];
    const rows = model.select(wanted(tab));
    state.lists[tab].show(rows, stay);
    const [n, of] = [rows.length, model.size].map((count) => count.toLocaleString("en"));
    find(`.count[data-for=${tab}]`).textContent = `${n} of ${of} ${tab === "questions" ? "questions" : "training samples"}`;
    document.querySelector("#explorer").dataset.milliseconds = (performance.now() - started).toFixed(1);
  }

  function categories() {
    const { protocol, group } = wanted("questions");
    const model = state.questions;
    const here = (row) => protocol === "" || model.column.protocol[row] === Number(protocol);
    const found = model.counts("group", here).filter(([word]) => model.data.strings[word] !== "");
    const pairs = found.map(([word, n]) => [String(word), `${model.data.strings[word]} (${n.toLocaleString("en")})`]);
    const kept = pairs.some(([key]) => key === group) ? group : "";
    options(find("select[name=group]"), [["", "All categories"], ...pairs], kept);
  }

  function fillQuestions(model) {
    const { protocols, students, baseline } = model.data;
    options(find("select[name=protocol]"), [["", "All benchmarks"], ...protocols.map((p, k) => [String(k), p.title])]);
    const present = model.present.map((k) => [String(k), students[k].name]);
    options(find("select[name=student]"), [["", "any student"], ...present]);
    options(find("select[name=baseline]"), present, String(model.present.includes(baseline) ? baseline : model.present[0]));
    find("select[name=teacher]").closest("label").hidden = model.teacher === null;
    find("option[value=teacher-unsure]").hidden = model.answers.confidence[model.teacher] === undefined;
    categories();
  }

  function fillTraining(model) {
    const counted = (word, n) => `${model.data.strings[word] || "not recorded"} (${n.toLocaleString("en")})`;
    const pairs = model.counts("benchmark").map(([word, n]) => [String(word), counted(word, n)]);
    options(find("select[name=benchmark]"), [["", "All benchmarks"], ...pairs]);
    const names = model.weights.map((w) => (model.several.has(w.student) ? `${w.student}, ${w.channel}` : w.student));
    options(find("select[name=weight]"), names.map((name, k) => [String(k), name]), String(model.widest));
    find("select[name=blind]").closest("label").hidden = !model.column.blind.some(Boolean);
  }

  function listen(tab) {
    const form = find(`form[data-for=${tab}]`);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target.name === "protocol") categories();
      if (["student", "baseline", "direction"].includes(event.target.name)) press(form.querySelector("[name=flipped]"), true);
      refresh(tab, event.target.name !== "order" && event.target.name !== "weight");
    });
    for (const button of form.querySelectorAll("[aria-pressed]")) {
      button.addEventListener("click", () => {
        press(button, button.getAttribute("aria-pressed") !== "true");
        refresh(tab);
      });
    }
    find(`.reset[data-for=${tab}]`).addEventListener("click", () => {
      form.reset();
      for (const button of form.querySelectorAll("[aria-pressed]")) press(button, false);
      if (tab === "questions") fillQuestions(state.questions);
      else fillTraining(state.training);
      refresh(tab, false);
    });
  }

  function press(button, on) {
    button.setAttribute("aria-pressed", String(on));
  }

  // ---- tabs and seeds ----

  async function open(tab) {
    state.tab = tab;
    for (const button of document.querySelectorAll("#explorer [role=tab]")) {
      const here = button.dataset.tab === tab;
      button.setAttribute("aria-selected", String(here));
      button.tabIndex = here ? 0 : -1;
    }
    for (const part of document.querySelectorAll("#explorer [data-for]")) part.hidden = part.dataset.for !== tab;
    find(".panes").setAttribute("aria-labelledby", `tab-${tab}`);
    await ready(tab);
    if (state.tab === tab) refresh(tab);
  }

  async function ready(tab) {
    const data = await Samples.load("questions");
    if (tab === "questions") {
      const answers = await Samples.load(`answers-${state.seed}`);
      const fresh = state.questions === null;
      state.questions ??= new Samples.Questions(data);
      if (state.questions.answers !== answers) state.questions.answer(answers);
      if (fresh) fillQuestions(state.questions);
      return;
    }
    const loaded = await Samples.load(`training-${state.seed}`);
    if (state.training?.data !== loaded) {
      state.training = new Samples.Training(loaded);
      fillTraining(state.training);
    }
    const left = loaded.left_out.toLocaleString("en");
    find(".left-out").textContent = loaded.left_out ? `${left} more were recorded and are left out for size.` : "";
  }

  function folded() {
    for (const more of document.querySelectorAll("#explorer details.more")) more.open = !PHONE.matches;
  }

  function tabs() {
    const buttons = [...document.querySelectorAll("#explorer [role=tab]")];
    for (const [index, button] of buttons.entries()) {
      button.addEventListener("click", () => run(open(button.dataset.tab)));
      button.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (by === undefined) return;
        const next = buttons[(index + by + buttons.length) % buttons.length];
        next.focus();
        next.click();
        event.preventDefault();
      });
    }
  }

  function run(promise) {
    promise.catch((error) => {
      const said = find(".failed");
      said.textContent = `The samples cannot be shown: ${error.message}. They lie in the folder samples beside this page.`;
      said.hidden = false;
      console.error(error);
    });
  }

  /** In the details: arrows go to the neighbours, Escape back to the list (a sheet closes by itself). */
  function typed(event) {
    const sideways = event.target.closest(".said-box") === null ? { ArrowRight: 1, ArrowLeft: -1 }[event.key] : undefined;
    if (sideways !== undefined) state.lists[state.tab].step(sideways);
    else if (event.key === "Escape" && event.currentTarget.id !== "sheet") find(`#list-${state.tab}`).focus();
    else return;
    event.preventDefault();
  }

  function begin() {
    const box = document.querySelector("#explorer");
    state.seed = box.dataset.seed;
    const make = {
      questions: (row) => SampleView.questionRow(state.questions, row),
      training: (row) => SampleView.trainingRow(state.training, row, Number(find("select[name=weight]").value)),
    };
    for (const tab of ["questions", "training"]) {
      if (find(`#list-${tab}`) === null) continue;
      state.lists[tab] = SampleList.create(find(`#list-${tab}`), make[tab], picked(tab));
      listen(tab);
    }
    folded();
    PHONE.addEventListener("change", folded);
    tabs();
    find("select[name=seed]")?.addEventListener("input", (event) => {
      state.seed = event.target.value;
      run(open(state.tab));
    });
    const sheet = document.querySelector("#sheet");
    sheet.addEventListener("close", closed);
    NARROW.addEventListener("change", () => sheet.open && sheet.close());
    for (const button of document.querySelectorAll("#explorer .detail-inner [data-step]")) {
      button.addEventListener("click", () => state.lists[state.tab].step(Number(button.dataset.step)));
    }
    document.querySelector("#explorer .detail-inner .close").addEventListener("click", () => sheet.close());
    for (const part of [find(".detail"), sheet]) part.addEventListener("keydown", typed);
    find(".body").hidden = false;
    run(open("questions"));
  }

  /** Load nothing until the reader is near: the page opens at once, whatever the run's size. */
  function start() {
    const box = document.querySelector("#explorer");
    if (box === null) return;
    const near = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        near.disconnect();
        begin();
      },
      { rootMargin: "1500px" },
    );
    near.observe(box);
  }

  return { start };
})();

Explorer.start();
