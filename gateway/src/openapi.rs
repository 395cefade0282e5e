//! `/openapi.json`: the document that is made from the contracts, with what REST adds: statuses, problem+json, security, headers.

use std::collections::BTreeMap;

use lastro_mesh::identity::Access;
use lastro_mesh::status::{self, Fixer, Reason};
use lastro_proto::methods::{METHODS, Method, Success};
use lastro_proto::reasons::NOT_FRESH_YET;
use lastro_proto::{OPENAPI, reasons};
use serde_json::{Map, Value, json};

/// Where the API is, seen from the document: nothing else is sure, since whoever runs it gives it a name.
const SERVER: &str = "/";

/// The OpenAPI 3.1 document.
pub fn document() -> Value {
    let mut document: Value = serde_json::from_str(OPENAPI).unwrap_or_default();
    document["info"]["description"] = json!(
        "Money that moves: users, accounts, transactions. Amounts are decimal strings, times RFC 3339 UTC, errors problem+json (RFC 9457). \
         A path without a version, /api/…, means the current one."
    );
    document["info"]["license"] = json!({ "name": "Apache 2.0", "identifier": "Apache-2.0" });
    document["info"]["contact"] = json!({ "name": "Lastro", "url": "https://lastro.dev" });
    document["servers"] = json!([{ "url": SERVER, "description": "Where this document comes from." }]);
    document["components"]["securitySchemes"] = json!({ "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } });
    document["components"]["schemas"]["Problem"] = problem_schema();
    document["components"]["headers"] = json!({
        "X-Correlation-Id": header("The id of this request, in every log line of it: the caller's, if it sent one that may be kept."),
        "Location": header("Where the thing is."),
        "Preference-Applied": header("That the header `Prefer` was heeded: `wait=5`."),
        "Retry-After": { "description": "Seconds after which the same request may work.", "schema": { "type": "integer", "minimum": 1 } },
    });
    for method in METHODS.iter().filter(|method| !method.http_path.is_empty()) {
        complete(&mut document, method);
    }
    document
}

fn header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

fn complete(document: &mut Value, method: &Method) {
    let verb = method.http_method.to_lowercase();
    let Some(operation) = document.get_mut("paths").and_then(|paths| paths.get_mut(method.http_path)?.get_mut(&verb)) else { return };
    operation["security"] = if method.access == Access::Public { json!([]) } else { json!([{ "bearer": [] }]) };
    let success = operation["responses"]["200"].take();
    let mut responses = Map::new();
    for (status, description) in successes(method) {
        let mut response = if *status == "204" { json!({}) } else { success.clone() };
        response["description"] = json!(description);
        response["headers"]["X-Correlation-Id"] = refer("headers", "X-Correlation-Id");
        if matches!(*status, "201" | "202") {
            response["headers"]["Location"] = refer("headers", "Location");
        }
        if *status == "200" && method.csv.is_some() {
            response["content"]["text/csv"] =
                json!({ "schema": { "type": "string", "description": "All rows, with their names in the first one; to `Accept: text/csv`." } });
        }
        if method.takes_wait {
            response["headers"]["Preference-Applied"] = refer("headers", "Preference-Applied");
        }
        responses.insert((*status).to_owned(), response);
    }
    let mut by_status: BTreeMap<u16, Vec<&Reason>> = BTreeMap::new();
    for reason in reasons_of(method) {
        by_status.entry(reason.http_status).or_default().push(reason);
    }
    for (status, reasons) in by_status {
        let said: Vec<String> = reasons.iter().map(|reason| format!("`{}`: {}.", reason.name, reason.title)).collect();
        let is_temporary = reasons.iter().any(|reason| reason.fixer == Fixer::Time);
        responses.insert(status.to_string(), problem(&said.join("\n\n"), is_temporary));
    }
    responses.insert("default".to_owned(), problem("Any other problem (RFC 9457): its `reason` says which.", true));
    operation["responses"] = Value::Object(responses);

    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let mut add = |name: &str, description: &str| {
        parameters.push(json!({ "name": name, "in": "header", "required": false, "description": description, "schema": { "type": "string" } }));
    };
    if method.takes_idempotency_key {
        add("Idempotency-Key", "In place of `externalId`; if both are given they must be the same.");
    }
    if method.takes_wait {
        add("Prefer", "`wait=5`: answer when the outcome is known, after 5 seconds at the latest; at most 30. Beats the body.");
    }
    if method.reasons.contains(&NOT_FRESH_YET.name) {
        add("X-Lastro-Freshness", "As the answer to a write had it: the read waits until it sees that write. May stand several times.");
    }
    if method.streams {
        add("Last-Event-ID", "In place of `lastEventId`: the id of the last event that was received, after which the stream goes on.");
    }
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if method.takes_idempotency_key {
        // The key may come in the header.
        let schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str().unwrap_or_default();
        let pointer = schema.trim_start_matches('#').to_owned();
        let required = document.pointer_mut(&pointer).and_then(|schema| schema.get_mut("required")).and_then(Value::as_array_mut);
        required.into_iter().for_each(|required| required.retain(|name| name != "externalId"));
    }
}

fn refer(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn problem(description: &str, is_temporary: bool) -> Value {
    let mut problem = json!({
        "description": description,
        "headers": { "X-Correlation-Id": refer("headers", "X-Correlation-Id") },
        "content": { "application/problem+json": { "schema": refer("schemas", "Problem") } },
    });
    if is_temporary {
        problem["headers"]["Retry-After"] = refer("headers", "Retry-After");
    }
    problem
}

/// Why a call may be refused: what its method says, and what every call may be refused for.
fn reasons_of(method: &Method) -> Vec<&'static Reason> {
    let own = method.reasons.iter().filter_map(|name| reasons::by_name(name));
    let mut all = vec![&status::INVALID_ARGUMENT, &status::RATE_LIMITED, &status::INTERNAL, &status::UNAVAILABLE, &status::DEADLINE_EXCEEDED];
    if method.access != Access::Public {
        all.extend([&status::UNAUTHENTICATED, &status::PERMISSION_MISSING]);
    }
    // Also for a body where none is taken.
    all.push(&reasons::MALFORMED_JSON);
    if method.takes_body {
        all.extend([&reasons::UNSUPPORTED_MEDIA_TYPE, &status::BODY_TOO_LARGE, &status::BODY_TOO_SLOW]);
    }
    all.into_iter().chain(own).collect()
}

fn successes(method: &Method) -> &'static [(&'static str, &'static str)] {
    match method.success {
        Success::Created => &[("200", "A repetition, by its idempotency key, of a call that made it."), ("201", "Made.")],
        Success::NoContent => &[("204", "Done.")],
        Success::Taken => &[("200", "A repetition, where the answer says `replayed`."), ("202", "Durably stored.")],
        Success::Accepted => &[
            ("200", "A repetition of a call whose outcome is known."),
            ("201", "The outcome was waited for and is known; `state`, or `status`, tells it, and it may be a refusal."),
            ("202", "Durably accepted."),
        ],
        Success::Ok if method.streams => &[
            ("200", "Events, as they happen: `id` and `data` each, which is the message."),
            ("204", "The stream ended with the event that was named."),
        ],
        Success::Ok => &[("200", "Done.")],
    }
}

fn problem_schema() -> Value {
    let names: Vec<&str> = reasons::all().map(|reason| reason.name).collect();
    json!({
        "type": "object",
        "description": "Why a request was refused (RFC 9457).",
        "required": ["type", "title", "status", "detail", "reason", "correlationId", "errors"],
        "properties": {
            "type": { "type": "string", "format": "uri", "description": "Stands for the reason." },
            "title": { "type": "string", "description": "The reason in one sentence." },
            "status": { "type": "integer", "description": "The HTTP status." },
            "detail": { "type": "string", "description": "What is wrong this time." },
            "reason": { "type": "string", "description": "Why, for programs. New ones may be added.", "examples": names },
            "correlationId": { "type": "string", "description": "The id of the request, in every log line of it." },
            "metadata": {
                "type": "object",
                "description": "What programs need to know beside that, such as the `permission` that is missing, or the `index` of a batch's culprit.",
                "additionalProperties": { "type": "string" }
            },
            "errors": {
                "type": "array",
                "description": "The fields at fault.",
                "items": {
                    "type": "object",
                    "required": ["field", "description"],
                    "properties": {
                        "field": { "type": "string", "description": "Its path in the request." },
                        "description": { "type": "string", "description": "What it must be." }
                    }
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
        let create = &schemas["CreateTransactionRequest"];
        assert_eq!(create["required"], json!(["type"]), "the key may come in a header, and legs in place of the amount");
        assert_eq!(create["additionalProperties"], json!(false));
        assert_eq!(create["properties"]["type"]["enum"], json!(["DEPOSIT", "WITHDRAWAL", "TRANSFER"]));
        assert_eq!(create["properties"]["externalId"]["maxLength"], json!(128));
        assert_eq!(create["properties"]["metadata"]["propertyNames"]["minLength"], json!(1));
        assert_eq!(create["properties"]["metadata"]["additionalProperties"]["maxLength"], json!(500));
        let update = &schemas["UpdateUserRequest"];
        assert_eq!((update.get("required"), update["properties"].get("id")), (None, None), "the id is in the path, and nothing has to change");
        assert_eq!(update["properties"]["roles"]["items"]["enum"], json!(["USER", "ADMIN", "PROVIDER"]));
        let list = &document["paths"]["/api/v1/transactions"]["get"]["parameters"][0];
        assert_eq!(
            (&list["schema"]["minimum"], &list["schema"]["maximum"], &list["description"]),
            (&json!(0), &json!(1000), &json!("1 to 1000; 0 means 50."))
        );
        assert_eq!(document["paths"]["/api/v1/users/{id}"]["get"]["parameters"][0]["schema"]["format"], json!("uuid"));
        // Every field of every message says what it is.
        for (name, schema) in schemas.as_object().expect("schemas") {
            assert!(schema["description"].is_string(), "{name}");
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{name}.{field}");
            }
        }
    }
}
