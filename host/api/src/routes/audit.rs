//! The audit log: entries, signed checkpoints, and the proofs with which a client checks them itself (RFC 9162).

use axum::extract::State;
use dwcp_control::records::{AuditCheckpoint, AuditRecord};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::extract::{Caller, Query};
use crate::paging;
use crate::problem::Problem;
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(get_audit_checkpoint))
        .routes(routes!(list_audit_entries))
        .routes(routes!(prove_audit_consistency))
        .routes(routes!(prove_audit_inclusion))
}

/// A proof: hashes of the Merkle tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    /// SHA-256 hashes in base64, in the order of RFC 9162.
    pub hashes: Vec<String>,
}

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EntryParams {
    /// Index of the first one.
    #[serde(default)]
    from: u64,
    /// Most entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// Two sizes of the tree.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ConsistencyParams {
    /// The smaller size.
    old: u64,
    /// The greater size.
    new: u64,
}

/// An entry and a size of the tree.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct InclusionParams {
    /// The entry's index.
    index: u64,
    /// The tree's size, greater than the index.
    size: u64,
}

/// Show the newest signed checkpoint and the key to check it with.
#[utoipa::path(get, path = "/v1/audit/checkpoint", operation_id = "getAuditCheckpoint", tag = "audit",
    responses((status = 200, description = "The checkpoint", body = AuditCheckpoint)))]
async fn get_audit_checkpoint(
    State(api): State<Api>,
    Caller(who): Caller,
) -> Reply<axum::Json<AuditCheckpoint>> {
    Ok(axum::Json(api.service.audit_checkpoint(&who).await?))
}

/// List entries from an index on, exactly as they were hashed.
#[utoipa::path(get, path = "/v1/audit/entries", operation_id = "listAuditEntries", tag = "audit",
    params(EntryParams),
    responses((status = 200, description = "Entries; go on after the last one's index", body = Page<AuditRecord>)))]
async fn list_audit_entries(
    State(api): State<Api>,
    Caller(who): Caller,
    Query(params): Query<EntryParams>,
) -> Reply<axum::Json<Page<AuditRecord>>> {
    let limit = paging::limit(params.limit)?;
    Ok(axum::Json(Page {
        items: api.service.audit_entries(&who, params.from, limit).await?,
        next_cursor: None,
    }))
}

/// Prove that a smaller tree is the beginning of a greater one.
#[utoipa::path(get, path = "/v1/audit/consistency", operation_id = "proveAuditConsistency", tag = "audit",
    params(ConsistencyParams),
    responses((status = 200, description = "The proof", body = Proof)))]
async fn prove_audit_consistency(
    State(api): State<Api>,
    Caller(who): Caller,
    Query(ConsistencyParams { old, new }): Query<ConsistencyParams>,
) -> Reply<axum::Json<Proof>> {
    if old > new {
        return Err(Problem::invalid("old is not greater than new"));
    }
    let hashes = api.service.audit_consistency(&who, old, new).await?;
    Ok(axum::Json(Proof { hashes }))
}

/// Prove that an entry is in the tree.
#[utoipa::path(get, path = "/v1/audit/inclusion", operation_id = "proveAuditInclusion", tag = "audit",
    params(InclusionParams),
    responses((status = 200, description = "The proof", body = Proof)))]
async fn prove_audit_inclusion(
    State(api): State<Api>,
    Caller(who): Caller,
    Query(InclusionParams { index, size }): Query<InclusionParams>,
) -> Reply<axum::Json<Proof>> {
    if index >= size {
        return Err(Problem::invalid("index is smaller than size"));
    }
    let hashes = api.service.audit_inclusion(&who, index, size).await?;
    Ok(axum::Json(Proof { hashes }))
}
