//! What needs no key: health, measurements, the document of the API and the pages that show it.
//!
//! The pages are part of the binary; a browser that opens them fetches nothing from anywhere else.

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::Config;

use super::Reply;
use crate::extract::Path;
use crate::openapi::document_json;
use crate::problem::Problem;
use crate::service::FaultKind;
use crate::state::Api;

/// Lets the pages load their own files, talk to this host, and nothing else.
const PAGES_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(get_health))
        .routes(routes!(get_metrics))
        .route("/openapi.json", get(openapi_json))
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|| page(String::new())))
        .route("/docs/{*file}", get(|Path(file): Path<String>| page(file)))
}

/// Say whether the host answers.
#[utoipa::path(get, path = "/healthz", operation_id = "getHealth", tag = "system", security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn get_health() -> &'static str {
    "ok\n"
}

/// Read measurements in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "system", security(()),
    responses((status = 200, description = "The measurements", body = String, content_type = "text/plain")))]
async fn get_metrics(State(api): State<Api>) -> Response {
    let text = api.service.metrics().await;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn openapi_json() -> Response {
    static JSON: OnceLock<String> = OnceLock::new();
    let json = JSON.get_or_init(document_json).as_str();
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

async fn page(file: String) -> Reply {
    static CONFIG: OnceLock<Arc<Config<'static>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let config = Config::from("/openapi.json")
            .validator_url("none")
            .try_it_out_enabled(true)
            .display_operation_id(true)
            .deep_linking(true);
        Arc::new(config)
    });
    let found = utoipa_swagger_ui::serve(&file, Arc::clone(config))
        .map_err(|error| Problem::new(FaultKind::Internal, error.to_string()))?
        .ok_or_else(|| {
            let detail = "There is no such page; begin at /docs/";
            Problem::new(FaultKind::NotFound, detail)
        })?;
    let headers = [
        (header::CONTENT_TYPE, found.content_type.as_str()),
        (header::CONTENT_SECURITY_POLICY, PAGES_POLICY),
        (header::CACHE_CONTROL, "max-age=3600"),
    ];
    Ok((headers, found.bytes.into_owned()).into_response())
}
