"use strict";

// Fills the path and the query from the form's fields; what is left empty is left out.
function address(form) {
  let path = form.dataset.path.slice(1);
  const query = new URLSearchParams();
  for (const field of form.querySelectorAll("[data-in]")) {
    const value = field.value;
    if (field.dataset.in === "path") {
      path = path.replace(`{${field.name}}`, encodeURIComponent(value));
    } else if (value !== "") {
      query.set(field.name, value);
    }
  }
  return `${path}?${query}`;
}

async function ask(form) {
  const result = form.parentElement.querySelector(".result");
  const [pre, frame, image] = ["pre", "iframe", "img"].map((name) => result.querySelector(name));
  const key = document.getElementById("api-key");
  const url = address(form);
  const started = performance.now();
  result.hidden = false;
  result.querySelector(".url").textContent = `GET /${url}`;
  const status = result.querySelector(".status");
  status.textContent = "…";
  for (const element of [pre, frame, image]) element.hidden = true;
  try {
    const response = await fetch(url, { headers: key && key.value ? { "X-API-Key": key.value } : {} });
    const took = Math.round(performance.now() - started);
    status.textContent = `${response.status} ${response.statusText}, ${took} ms`;
    const type = response.headers.get("content-type") || "";
    if (type.startsWith("image/svg")) {
      image.src = `data:image/svg+xml,${encodeURIComponent(await response.text())}`;
      image.hidden = false;
    } else if (type.startsWith("text/html")) {
      frame.srcdoc = await response.text();
      frame.hidden = false;
    } else {
      pre.textContent = JSON.stringify(await response.json(), null, 2);
      pre.hidden = false;
    }
  } catch (error) {
    status.textContent = "";
    pre.textContent = String(error);
    pre.hidden = false;
  }
}

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(form);
  });
}
