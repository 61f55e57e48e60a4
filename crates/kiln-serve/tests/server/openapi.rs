//! The description of the API and the API: the same addresses, and answers of the shape that it says.

use std::collections::BTreeSet;

use crate::artifacts::{intent, select};
use crate::serving::{PUBLISHER, Serving};
use kiln_core::Digest;
use serde_json::{Map, Value};

/// What is said about the address of the description itself, and what never ends.
const APART: [&str; 2] = ["/openapi.json", "/events"];

/// The addresses that the router has, read where they are given.
fn routes() -> BTreeSet<String> {
    let source = include_str!("../../src/api.rs");
    let routes = source.split(".route(").skip(1).filter_map(|rest| rest.split('"').nth(1));
    routes.map(|route| route.replace("{*", "{")).collect()
}

/// Whether `value` is what `schema` says; the path to what is not.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).ok_or(format!("{at}: no {reference}"))?;
        return check(document, target, value, at);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check(document, part, value, at)?;
    }
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !right {
        return Err(format!("{at} is {value} and not of the type {}", schema["type"]));
    }
    let object = value.as_object().cloned().unwrap_or_default();
    let names = schema["required"].as_array().cloned().unwrap_or_default();
    if let Some(lost) = names.iter().filter_map(Value::as_str).find(|name| !object.contains_key(*name)) {
        return Err(format!("{at} has no `{lost}`"));
    }
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    for (name, inside) in &object {
        let schema = properties.get(name).unwrap_or(&schema["additionalProperties"]);
        check(document, schema, inside, &format!("{at}.{name}"))?;
    }
    for (number, inside) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], inside, &format!("{at}[{number}]"))?;
    }
    Ok(())
}

/// An address as somebody would ask for it, and what is sent there.
fn sample(path: &str) -> String {
    let folder = if path.ends_with("/records") { "?folder=v" } else { "" };
    let path = path.replace("{image}", "web").replace("{reference}", "latest").replace("{version}", "1.0.0");
    let path = path.replace("{channel}", "stable").replace("{key}", "head.json");
    format!("{}{folder}", path.replace("{digest}", &Digest::of(b"none").to_string()))
}

fn body(path: &str) -> &'static str {
    match path.rsplit('/').next().unwrap() {
        "promote" => "{\"version\": \"1.1.0\"}",
        "restrict" => "{\"restricted\": false}",
        "revoke" => "{\"reason\": \"CVE\"}",
        "missing" => "{\"blobs\": []}",
        _ => "{}",
    }
}

#[test]
fn the_description_has_every_address_and_the_answers_have_the_shapes_that_it_says() {
    let server = Serving::new("openapi");
    let stable = "stable".parse().unwrap();
    server.registry.promote(&select("web@1.0.0"), &stable, None, &intent("ada")).unwrap();
    let (_, document) = server.json(&[], "/api/v1/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let described: BTreeSet<_> = paths.keys().cloned().collect();
    let known: BTreeSet<_> = routes().into_iter().filter(|route| route != APART[0]).collect();
    assert_eq!(described, known);

    let authorization = format!("Authorization: Bearer {PUBLISHER}");
    let mut shapes = 0;
    for (path, methods) in paths.iter().filter(|(path, _)| !APART.contains(&path.as_str())) {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(method, _)| *method != "put") {
            let mut arguments = vec!["-H", authorization.as_str()];
            if method == "post" {
                arguments.extend(["-H", "Content-Type: application/json", "-d", body(path)]);
            }
            let (status, answer) = server.json(&arguments, &format!("/api/v1{}", sample(path)));
            let answers = operation["responses"].as_object().unwrap();
            let described = answers.get(&status.to_string()).unwrap_or(&answers["default"]);
            let content = described["content"].as_object().unwrap().values().next().unwrap();
            check(&document, &content["schema"], &answer, &format!("{method} {path} ({status})")).unwrap();
            // What is refused here is refused for want of a blob or a version, not by the address.
            let allowed = path.ends_with("/blobs/{digest}") || path.ends_with("/versions") && status == 400;
            assert!(status == 200 || allowed, "{method} {path}: {status} {answer}");
            shapes += 1;
        }
    }
    assert!(shapes > 15, "{shapes}");
    let document_lies = check(&document, &document["components"]["schemas"]["Images"], &Value::Null, "images");
    assert!(document_lies.is_err(), "the check can fail");
}
