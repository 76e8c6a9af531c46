//! The document of the API (OpenAPI 3.1): made from the routes, completed with what all of them share.
//!
//! It is held by the golden file `openapi.json` beside this crate's manifest; SDKs are checked against that file.

use std::collections::BTreeMap;

use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ArrayItems, Schema};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr,
    Response, ResponseBuilder, path,
};
use utoipa::{PartialSchema, ToSchema};

use crate::change::IDEMPOTENCY_KEY;
use crate::limits::{BODY_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX};
use crate::problem::{PROBLEM_JSON, Problem};
use crate::routes;

/// Name of the security scheme.
const API_KEY: &str = "apiKey";

/// What the document says at its head.
fn description() -> String {
    let kinds: String = Problem::kinds()
        .into_iter()
        .map(|(status, kind, title)| format!("| {status} | `{kind}` | {title} |\n"))
        .collect();
    format!(
        "Hosts, virtual machines, live migration, plugins and policies.\n\n\
        Every path but `/healthz`, `/metrics`, `/openapi.json` and `/docs` needs `Authorization: Bearer KEY`.\n\n\
        **Errors** are problem details (RFC 9457), with single reasons in `reasons`:\n\n\
        | status | type | meaning |\n|---|---|---|\n{kinds}\n\
        **Lists** come in parts of `limit` objects ({PAGE_DEFAULT} unless asked, at most {PAGE_MAX}); give `next_cursor` as \
        `cursor` for the next part. A cursor means nothing else.\n\n\
        **Revisions**: a read carries an `ETag`; `If-None-Match` answers 304, `If-Match` insists on a change's base.\n\n\
        **Repeating**: a POST with an `Idempotency-Key` (1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible characters) that was carried out is \
        answered again for a day and not repeated (`Idempotency-Replayed: true`). A change goes on if its client leaves.\n\n\
        **Long work** returns an operation; `/v1/operations/{{id}}/events` streams it.\n\n\
        **Limits**: a body of JSON or text has at most {BODY_BYTES_MAX} bytes, an image 64 GiB. A client that stops sending or \
        taking for 30 seconds is cut off. Beyond the places for streams and changes the answer is 503 with `Retry-After`.\n\n\
        **Tracing**: `X-Request-Id` (given or made) is in the answer, in problems and in the host's log.\n\n\
        **Versions**: within `/v1` fields, operations and problem types are added, never changed or taken away; a client \
        ignores fields that it does not know."
    )
}

/// The document.
pub fn document() -> OpenApi {
    let (_, mut api) = routes::open().merge(routes::keyed()).split_for_parts();
    api.info = InfoBuilder::new()
        .title("DWCP")
        .version("1")
        .description(Some(description()))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ))
        .build();
    api.servers = None;
    api.security = Some(vec![SecurityRequirement::new(
        API_KEY,
        Vec::<String>::new(),
    )]);
    let mut components = api.components.take().unwrap_or_else(Components::new);
    components.add_security_scheme(
        API_KEY,
        SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
    );
    let mut schemas: Vec<(String, RefOr<Schema>)> = Vec::new();
    Problem::schemas(&mut schemas);
    components
        .schemas
        .insert(Problem::name().into_owned(), Problem::schema());
    components.schemas.extend(schemas);
    tidy(&mut components.schemas);
    for (status, _, _) in Problem::kinds() {
        let response = RefOr::T(problem(status));
        components.responses.insert(problem_name(status), response);
    }
    api.components = Some(components);
    for (path, item) in &mut api.paths.paths {
        let operations = [
            (HttpMethod::Get, &mut item.get),
            (HttpMethod::Post, &mut item.post),
            (HttpMethod::Put, &mut item.put),
            (HttpMethod::Delete, &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                complete(path, &method, operation);
            }
        }
    }
    api
}

/// The document as it is served and kept: indented JSON with a newline at its end.
pub fn document_json() -> String {
    let mut text = document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Adds what operations share: the key, the errors that can be met, the idempotency key.
fn complete(path: &str, method: &HttpMethod, operation: &mut Operation) {
    if operation.security.is_none() {
        let required = SecurityRequirement::new(API_KEY, Vec::<String>::new());
        operation.security = Some(vec![required]);
        for status in errors(path, method, operation) {
            let responses = &mut operation.responses.responses;
            let reference = Ref::from_response_name(problem_name(status));
            responses.insert(status.to_string(), RefOr::Ref(reference));
        }
        let success = operation.responses.responses.get("200");
        let tagged =
            matches!(success, Some(RefOr::T(response)) if response.headers.contains_key("ETag"));
        if tagged && *method == HttpMethod::Get {
            let unchanged = ResponseBuilder::new()
                .description("It is as it was under the ETag in `If-None-Match`")
                .build();
            let responses = &mut operation.responses.responses;
            responses.insert("304".into(), RefOr::T(unchanged));
        }
    }
    if *method == HttpMethod::Post && path != "/v1/images" {
        let key = path::ParameterBuilder::new()
            .name(IDEMPOTENCY_KEY.as_str())
            .parameter_in(path::ParameterIn::Header)
            .description(Some("Makes the request safe to repeat"))
            .schema(Some(String::schema()))
            .build();
        operation.parameters.get_or_insert_default().push(key);
    }
}

/// Lets lists refer to what they hold instead of repeating it.
fn tidy(schemas: &mut BTreeMap<String, RefOr<Schema>>) {
    for (name, schema) in schemas {
        let Some(item) = name.strip_prefix("Page_") else {
            continue;
        };
        let RefOr::T(Schema::Object(page)) = schema else {
            continue;
        };
        if let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items") {
            let reference = RefOr::Ref(Ref::from_schema_name(item));
            items.items = ArrayItems::RefOrSchema(Box::new(reference));
        }
    }
}

fn problem_name(status: u16) -> String {
    format!("Problem{status}")
}

fn errors(path: &str, method: &HttpMethod, operation: &Operation) -> Vec<u16> {
    let mut statuses = vec![400, 401, 500, 503];
    let changes = *method != HttpMethod::Get;
    if path.contains('{') {
        statuses.push(404);
    }
    if changes {
        statuses.extend([403, 409, 422]);
    }
    if operation.request_body.is_some() {
        statuses.extend([408, 413, 415]);
    }
    let parameters = operation.parameters.iter().flatten();
    if parameters.into_iter().any(|p| p.name == "If-Match") {
        statuses.push(412);
    }
    if path.ends_with("/console") {
        statuses.extend([409, 426]);
    }
    statuses
}

fn problem(status: u16) -> Response {
    let titles: Vec<_> = Problem::kinds()
        .into_iter()
        .filter(|(of, _, _)| *of == status)
        .map(|(_, _, title)| title)
        .collect();
    let schema = Ref::from_schema_name(Problem::name());
    ResponseBuilder::new()
        .description(titles.join("; "))
        .content(
            PROBLEM_JSON,
            ContentBuilder::new().schema(Some(schema)).build(),
        )
        .build()
}
