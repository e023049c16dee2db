// Shows /openapi.json. Everything is put in as text, never as markup.
"use strict";

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  for (const child of children) if (child !== null) made.append(child);
  return made;
}

// Text with `code` between back quotes.
function prose(text) {
  const made = element("p");
  (text || "").split("`").forEach((part, i) => made.append(i % 2 ? element("code", {}, part) : part));
  return made;
}

function resolved(description, schema, seen) {
  if (schema === null || typeof schema !== "object") return schema;
  if (Array.isArray(schema)) return schema.map((each) => resolved(description, each, seen));
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    if (seen.includes(name)) return { $ref: name };
    return resolved(description, description.components.schemas[name], [...seen, name]);
  }
  return Object.fromEntries(
    Object.entries(schema).map(([key, value]) => [key, resolved(description, value, seen)]));
}

function shape(description, media, content) {
  const text = JSON.stringify(resolved(description, content.schema, []), null, 2);
  return element("details", {}, element("summary", {}, element("code", {}, media)),
    element("pre", {}, text));
}

function parameters(operation) {
  if (!operation.parameters) return null;
  const table = element("table");
  for (const each of operation.parameters) {
    const facts = Object.entries(each.schema || {})
      .filter(([key]) => key !== "description")
      .map(([key, value]) => `${key} ${Array.isArray(value) ? value.join(" | ") : value}`);
    table.append(element("tr", {}, element("td", {}, each.name),
      element("td", {}, each.in + (each.required ? ", required" : "")),
      element("td", {}, facts.join(", "), prose(each.description || each.schema.description))));
  }
  return table;
}

function operationSection(description, path, method, operation) {
  const made = element("section", { id: operation.operationId },
    element("h3", {}, `${method.toUpperCase()} ${path}`), prose(operation.summary));
  if (operation.description) made.append(prose(operation.description));
  for (const need of operation.security || [])
    made.append(prose("Needs a key with scope " + need.key.map((s) => "`" + s + "`").join(" or ") + "."));
  const table = parameters(operation);
  if (table) made.append(table);
  if (operation.requestBody) {
    made.append(element("h4", {}, "Body"));
    for (const [media, content] of Object.entries(operation.requestBody.content))
      made.append(shape(description, media, content));
  }
  made.append(element("h4", {}, "Answers"));
  const answers = element("table");
  for (const [status, answer] of Object.entries(operation.responses)) {
    const cell = element("td");
    for (const line of answer.description.split("\n\n")) cell.append(prose(line));
    for (const [media, content] of Object.entries(answer.content || {}))
      if (media !== "application/problem+json") cell.append(shape(description, media, content));
    answers.append(element("tr", {}, element("td", {}, status), cell));
  }
  made.append(answers);
  return made;
}

async function show() {
  const main = document.querySelector("main");
  const nav = document.querySelector("nav");
  const description = await (await fetch("/openapi.json")).json();
  main.replaceChildren(element("h1", {}, `${description.info.title} ${description.info.version}`),
    prose(description.info.description));
  const tags = new Map();
  for (const [path, operations] of Object.entries(description.paths))
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags[0];
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push([path, method, operation]);
    }
  for (const [tag, operations] of tags) {
    nav.append(element("h2", {}, tag));
    main.append(element("h2", {}, tag));
    for (const [path, method, operation] of operations) {
      nav.append(element("a", { href: "#" + operation.operationId },
        element("span", { class: "method" }, method.toUpperCase()), path));
      main.append(operationSection(description, path, method, operation));
    }
  }
}

show().catch((error) => {
  document.querySelector("main").replaceChildren(prose("The description cannot be read: " + error));
});
