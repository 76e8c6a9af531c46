//! The document of the API is what the golden file says; `UPDATE_GOLDEN=1` writes a new one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json")
}

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            let item = item.as_object().unwrap();
            item.iter()
                .map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
        })
        .collect()
}

#[test]
fn the_document_is_the_golden_file() {
    let made = dwcp_api::document_json();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden(), &made).unwrap();
    }
    let kept = std::fs::read_to_string(golden()).unwrap_or_default();
    assert!(
        kept == made,
        "host/api/openapi.json is not what the routes say; look at the difference after UPDATE_GOLDEN=1"
    );
}

#[test]
fn every_operation_says_what_a_client_needs() {
    let document: Value = serde_json::from_str(&dwcp_api::document_json()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let at = format!("{method} {path}");
        assert!(operation["summary"].is_string(), "{at}: no summary");
        let id = operation["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id), "{at}: its operationId is taken");
        assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{at}");
        let keyed = path.starts_with("/v1/");
        assert_eq!(operation["security"][0]["apiKey"].is_array(), keyed, "{at}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|s| s.starts_with(['1', '2'])), "{at}");
        if keyed {
            assert!(responses.contains_key("401"), "{at}: no 401");
        }
        for (status, response) in responses {
            if status.starts_with(['4', '5']) {
                let reference = response["$ref"].as_str().unwrap();
                let response = document.pointer(&reference[1..]).unwrap();
                let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{at} {status}");
            }
        }
        for name in path.split('{').skip(1) {
            let name = name.split('}').next().unwrap();
            let described =
                operation["parameters"].as_array().unwrap().iter().any(|p| {
                    p["name"] == name && p["in"] == "path" && p["description"].is_string()
                });
            assert!(described, "{at}: {name} is not described");
        }
    }
    assert!(ids.len() >= 45, "only {} operations", ids.len());
}

#[test]
fn every_reference_leads_somewhere() {
    let document: Value = serde_json::from_str(&dwcp_api::document_json()).unwrap();
    let mut left = vec![&document];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                }
                left.extend(object.values());
            }
            Value::Array(array) => left.extend(array),
            _ => {}
        }
    }
}
