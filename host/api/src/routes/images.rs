//! Images: content that machines boot from, addressed by its digest.
//!
//! An upload goes through to the service piece by piece; nothing here ever holds more than one piece.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use base64::Engine as _;
use dwcp_control::records::Image;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, digest};
use crate::etag;
use crate::extract::{Caller, Path, Query, expect_media};
use crate::limits::{BODY_STALL, IMAGE_BYTES_MAX, LABEL_BYTES_MAX};
use crate::paging::{PageParams, Paging};
use crate::problem::Problem;
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_images, put_image))
        .routes(routes!(get_image, delete_image))
}

/// How an image is stored.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PutParams {
    /// What it is called in lists; at most 255 bytes.
    #[serde(default)]
    #[param(max_length = 255)]
    label: String,
}

/// List stored images.
#[utoipa::path(get, path = "/v1/images", operation_id = "listImages", tag = "images",
    params(PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Image>)))]
async fn list_images(State(api): State<Api>, paging: Paging) -> Reply<axum::Json<Page<Image>>> {
    let page = api.service.image_list(paging.request.clone()).await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Upload an image.
///
/// The body is the content itself, at most 64 GiB, streamed. The same content is stored once, so a repeated upload is
/// harmless. A disk (raw or qcow2) is looked into: the kernel, initial RAM disk and command line that it boots with
/// are found and stored, and its record says what it is. With `Content-Digest: sha-256=:BASE64:` (RFC 9530) or `Digest: sha-256=BASE64` it is checked on arrival.
#[utoipa::path(post, path = "/v1/images", operation_id = "putImage", tag = "images",
    params(PutParams,
        ("Content-Digest" = Option<String>, Header, description = "Digest that the content must have, such as `sha-256=:BASE64:`")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The content"),
    responses((status = 201, description = "It is stored", body = Image,
        headers(("Location" = String, description = "Its path")))))]
async fn put_image(
    State(api): State<Api>,
    Caller(who): Caller,
    Query(params): Query<PutParams>,
    request: Request,
) -> Reply {
    expect_media(request.headers(), "application/octet-stream")?;
    if params.label.len() > LABEL_BYTES_MAX {
        return Err(Problem::invalid(format!(
            "A label has at most {LABEL_BYTES_MAX} bytes"
        )));
    }
    let expected = expected_digest(request.headers())?;
    if announced_length(request.headers()).is_some_and(|length| length > IMAGE_BYTES_MAX) {
        return Err(Problem::too_large("The image", IMAGE_BYTES_MAX));
    }
    let broken = Arc::new(OnceLock::new());
    let content = bounded(request.into_body(), Arc::clone(&broken));
    let stored = api
        .service
        .image_put(&who, &params.label, expected, Box::pin(content))
        .await;
    // The service saw only that the stream broke off; why is known here.
    if let Some(problem) = broken.get() {
        return Err(Problem::clone(problem));
    }
    let image = stored?;
    let at = format!("/v1/images/{}", image.digest);
    let response = (StatusCode::CREATED, axum::Json(image)).into_response();
    Ok(etag::located(response, &at))
}

/// Show an image.
#[utoipa::path(get, path = "/v1/images/{digest}", operation_id = "getImage", tag = "images",
    params(("digest" = String, Path, description = "SHA-256 of the content, hexadecimal")),
    responses((status = 200, description = "The image", body = Image, headers(("ETag" = String, description = "Its revision")))))]
async fn get_image(
    State(api): State<Api>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Reply {
    let image = api.service.image_get(digest(&sha256)?).await?;
    Ok(etag::read(&headers, image))
}

/// Delete an image.
///
/// Refused while a machine or a template uses it.
#[utoipa::path(delete, path = "/v1/images/{digest}", operation_id = "deleteImage", tag = "images",
    params(("digest" = String, Path, description = "SHA-256 of the content, hexadecimal")),
    responses((status = 204, description = "It is gone")))]
async fn delete_image(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(sha256): Path<String>,
) -> Reply<StatusCode> {
    api.service.image_delete(&who, digest(&sha256)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The body's pieces, until one is late, broken, or too much; then the reason is left in `broken`.
fn bounded(
    body: Body,
    broken: Arc<OnceLock<Problem>>,
) -> impl Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    let pieces = body.into_data_stream();
    futures::stream::try_unfold((pieces, 0_u64), move |(mut pieces, before)| {
        let broken = Arc::clone(&broken);
        async move {
            let fail = |problem: Problem| {
                let error = std::io::Error::other(problem.detail.clone());
                // Only the first reason counts.
                let _ = broken.set(problem);
                error
            };
            match tokio::time::timeout(BODY_STALL, pieces.next()).await {
                Err(_) => Err(fail(Problem::timeout("The image came too slowly"))),
                Ok(None) => Ok(None),
                Ok(Some(Err(error))) => Err(fail(Problem::invalid(format!(
                    "The image did not arrive whole: {error}"
                )))),
                Ok(Some(Ok(piece))) => {
                    let length = before.saturating_add(piece.len() as u64);
                    if length > IMAGE_BYTES_MAX {
                        Err(fail(Problem::too_large("The image", IMAGE_BYTES_MAX)))
                    } else {
                        Ok(Some((piece, (pieces, length))))
                    }
                }
            }
        }
    })
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// The SHA-256 of a `Content-Digest` (RFC 9530) or `Digest` (RFC 3230) header, in hexadecimal.
fn expected_digest(headers: &HeaderMap) -> Reply<Option<String>> {
    let Some(value) = headers
        .get("content-digest")
        .or_else(|| headers.get("digest"))
    else {
        return Ok(None);
    };
    let sha256 = value
        .to_str()
        .unwrap_or_default()
        .split(',')
        .filter_map(|one| one.trim().split_once('='))
        .find(|(algorithm, _)| algorithm.eq_ignore_ascii_case("sha-256"))
        .map(|(_, digest)| digest.trim_matches(':'))
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
        .filter(|bytes| bytes.len() == 32);
    match sha256 {
        Some(bytes) => Ok(Some(hex::encode(bytes))),
        None => Err(Problem::invalid(
            "The digest header is taken as `Content-Digest: sha-256=:BASE64:`",
        )),
    }
}
