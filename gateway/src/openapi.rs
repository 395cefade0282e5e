//! `/openapi.json`: what the contracts generate, joined, with what only REST has: true statuses, problem+json, security, headers.

use lastro_mesh::identity::Access;
use lastro_proto::OPENAPI;
use lastro_proto::methods::{METHODS, Method};
use serde_json::{Map, Value, json};

/// The OpenAPI 3.1 document.
pub fn document() -> Value {
    let mut document = Value::Null;
    for one in OPENAPI {
        merge(&mut document, serde_json::from_str(one).unwrap_or_default());
    }
    document["info"]["description"] = json!(
        "Money that moves: users, accounts, transactions. Amounts are decimal strings, times RFC 3339 UTC, errors problem+json (RFC 9457). \
         A path without a version, /api/…, means the current one."
    );
    document["components"]["securitySchemes"] = json!({ "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } });
    document["components"]["schemas"]["Problem"] = problem_schema();
    // Its key may come in a header.
    let required = document["components"]["schemas"]["lastro.transactions.v1.CreateTransactionRequest"].get_mut("required");
    required.and_then(Value::as_array_mut).into_iter().for_each(|required| required.retain(|name| name != "externalId"));
    for method in METHODS.iter().filter(|method| !method.http_path.is_empty()) {
        let verb = method.http_method.to_lowercase();
        if let Some(operation) = document.get_mut("paths").and_then(|paths| paths.get_mut(method.http_path)).and_then(|path| path.get_mut(&verb)) {
            complete(operation, method);
        }
    }
    document
}

/// Adds what is missing; objects are joined.
fn merge(into: &mut Value, other: Value) {
    match (into, other) {
        (Value::Object(into), Value::Object(other)) => {
            for (key, value) in other {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into @ Value::Null, other) => *into = other,
        _ => {}
    }
}

fn complete(operation: &mut Value, method: &Method) {
    if method.access == Access::Public {
        operation["security"] = json!([]);
    } else {
        operation["security"] = json!([{ "bearer": [] }]);
    }
    let success = operation["responses"].get("200").cloned().unwrap_or_else(|| json!({ "description": "Done." }));
    let mut responses = Map::new();
    for (status, description) in successes(method) {
        let mut response = success.clone();
        response["description"] = json!(description);
        if *status == "204" {
            response = json!({ "description": description });
        }
        if matches!(*status, "201" | "202") {
            response["headers"]["Location"] = json!({ "description": "Where it is.", "schema": { "type": "string" } });
        }
        responses.insert((*status).to_owned(), response);
    }
    let problem = json!({
        "description": "A problem (RFC 9457): 400 a broken rule, 401 no valid token, 403 a missing permission, 404 none or somebody else's, \
                        409 or 422 a conflict, 429 too many requests, 503 busy or away.",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } }
    });
    let mut problems = vec!["400", "429", "503"];
    if method.access != Access::Public {
        problems.extend(["401", "403"]);
    }
    if method.http_path.contains('{') || method.name == "CreateTransaction" {
        problems.push("404");
    }
    match method.name {
        "CreateTransaction" => problems.push("422"),
        "CreateUser" | "CreateAccount" => problems.extend(["409", "422"]),
        "UpdateUser" | "DeleteUser" => problems.push("409"),
        "Login" | "Refresh" => problems.push("401"),
        _ => {}
    }
    for status in problems.into_iter().chain(["default"]) {
        responses.insert(status.to_owned(), problem.clone());
    }
    operation["responses"] = Value::Object(responses);
    if successes(method).iter().any(|(status, _)| *status == "201") {
        let header = |name: &str, description: &str| json!({ "name": name, "in": "header", "required": false, "description": description, "schema": { "type": "string" } });
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let mut added = vec![header("Idempotency-Key", "In place of externalId; if both are given they must be the same.")];
        if method.name == "CreateTransaction" {
            added.push(header("Prefer", "`wait=5`: answer when the outcome is known, after 5 seconds at the latest; at most 30. Beats the body."));
        }
        operation["parameters"] = Value::Array(parameters.into_iter().chain(added).collect());
    }
}

fn successes(method: &Method) -> &'static [(&'static str, &'static str)] {
    match method.name {
        "CreateUser" | "CreateAccount" => &[("200", "A repetition, by its idempotency key, of a call that made it."), ("201", "Made.")],
        "DeleteUser" => &[("204", "Gone.")],
        "CreateTransaction" => &[
            ("200", "A repetition of a transaction whose outcome is known."),
            ("201", "The outcome was waited for and is known; it may be REJECTED."),
            ("202", "Durably accepted."),
        ],
        _ => &[("200", "Done.")],
    }
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "reason", "correlationId", "errors"],
        "properties": {
            "type": { "type": "string", "format": "uri" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "reason": { "type": "string", "enum": lastro_proto::reasons::all().map(|reason| reason.name).collect::<Vec<_>>() },
            "correlationId": { "type": "string" },
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "description"],
                    "properties": { "field": { "type": "string" }, "description": { "type": "string" } }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_documented_with_its_true_statuses_and_security() {
        let document = document();
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
        for method in METHODS.iter().filter(|method| !method.http_path.is_empty()) {
            let operation = &document["paths"][method.http_path][method.http_method.to_lowercase()];
            assert!(operation.is_object(), "{} {}", method.http_method, method.http_path);
            assert_eq!(operation["security"] == json!([]), method.access == Access::Public, "{}", method.path);
            assert!(operation["responses"]["default"]["content"]["application/problem+json"].is_object(), "{}", method.path);
        }
        let created = &document["paths"]["/api/v1/transactions"]["post"]["responses"];
        assert!(["200", "201", "202", "400", "401", "404", "422"].iter().all(|status| created[status].is_object()), "{created}");
    }

    #[test]
    fn the_rules_and_the_words_of_the_contracts_are_there() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        let create = &schemas["lastro.transactions.v1.CreateTransactionRequest"];
        assert_eq!(create["required"], json!(["type", "amount"]), "the key may come in a header");
        assert_eq!(create["additionalProperties"], json!(false));
        assert_eq!(create["properties"]["type"]["enum"], json!(["DEPOSIT", "WITHDRAWAL", "TRANSFER"]));
        assert_eq!(create["properties"]["externalId"]["maxLength"], json!(128));
        assert_eq!(create["properties"]["metadata"]["propertyNames"]["minLength"], json!(1));
        assert_eq!(create["properties"]["metadata"]["additionalProperties"]["maxLength"], json!(500));
        let update = &schemas["lastro.customers.v1.UpdateUserRequest"];
        assert_eq!((update.get("required"), update["properties"].get("id")), (None, None), "the id is in the path, and nothing has to change");
        assert_eq!(update["properties"]["roles"]["items"]["enum"], json!(["USER", "ADMIN", "PROVIDER"]));
        let list = &document["paths"]["/api/v1/transactions"]["get"]["parameters"][0];
        assert_eq!(
            (&list["schema"]["minimum"], &list["schema"]["maximum"], &list["description"]),
            (&json!(0), &json!(1000), &json!("1 to 1000; 0 means 50."))
        );
        assert_eq!(document["paths"]["/api/v1/users/{id}"]["get"]["parameters"][0]["schema"]["format"], json!("uuid"));
        // Every field of every message says what it is.
        for (name, schema) in schemas.as_object().expect("schemas").iter().filter(|(name, _)| name.starts_with("lastro.")) {
            assert!(schema["description"].is_string(), "{name}");
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{name}.{field}");
            }
        }
    }
}
