// The reference of /openapi.json. The search looks at everything that an operation says, and not only at its tag.
window.onload = () => {
  const words = (operation) =>
    [
      operation.get("method"),
      operation.get("path"),
      operation.getIn(["operation", "operationId"]),
      operation.getIn(["operation", "summary"]),
      operation.getIn(["operation", "description"]),
    ].join(" ").toLowerCase();
  const search = () => ({
    fn: {
      opsFilter: (tags, phrase) =>
        tags
          .map((tag, name) =>
            name.toLowerCase().includes(phrase.toLowerCase())
              ? tag
              : tag.set("operations", tag.get("operations").filter((operation) => words(operation).includes(phrase.toLowerCase()))))
          .filter((tag) => tag.get("operations").size > 0),
    },
  });
  window.ui = SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    filter: true,
    // The token stays in this browser until it is taken out by "Logout".
    persistAuthorization: true,
    tryItOutEnabled: true,
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [search],
    layout: "BaseLayout",
  });
  // The box of the filter names tags alone.
  new MutationObserver(() => {
    const box = document.querySelector(".operation-filter-input");
    if (box) box.placeholder = "Search";
  }).observe(document.getElementById("swagger-ui"), { childList: true, subtree: true });
};
