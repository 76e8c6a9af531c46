//! Lists in parts: the query that asks for one, and cursors that mean nothing to a client and only fit their own list.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::extract::Query;
use crate::limits::{CURSOR_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX};
use crate::problem::Problem;
use crate::service::{Page, PageRequest};

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageParams {
    /// The `next_cursor` of the part before; from the beginning if absent.
    #[param(max_length = 1024)]
    cursor: Option<String>,
    /// Most objects in this part.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// A part of the list at this request's path.
#[derive(Debug)]
pub(crate) struct Paging {
    list: String,
    /// What the service is asked.
    pub(crate) request: PageRequest,
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(params) = Query::<PageParams>::from_request_parts(parts, state).await?;
        let list = parts.uri.path().to_owned();
        let limit = limit(params.limit)?;
        let cursor = params.cursor.as_deref().map(|cursor| open(&list, cursor));
        let cursor = cursor.transpose()?;
        Ok(Self {
            list,
            request: PageRequest { cursor, limit },
        })
    }
}

impl Paging {
    /// Seals the service's cursor for the client.
    pub(crate) fn seal<T>(&self, mut page: Page<T>) -> Page<T> {
        page.next_cursor = page.next_cursor.map(|cursor| seal(&self.list, &cursor));
        page
    }
}

/// How many objects, if the client said.
pub(crate) fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(PAGE_DEFAULT);
    if (1..=PAGE_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::invalid(format!("limit is 1 to {PAGE_MAX}")))
    }
}

/// A cursor of a list as the client gets it.
pub(crate) fn seal(list: &str, cursor: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{list}\0{cursor}"))
}

/// The service's cursor out of a client's; refused if it is of another list.
pub(crate) fn open(list: &str, sealed: &str) -> Result<String, Problem> {
    let refused = || Problem::invalid("The cursor is not one of this list; begin without one");
    if sealed.len() > CURSOR_BYTES_MAX {
        return Err(refused());
    }
    let bytes = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| refused())?;
    let text = String::from_utf8(bytes).map_err(|_| refused())?;
    match text.split_once('\0') {
        Some((of, cursor)) if of == list => Ok(cursor.to_owned()),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cursor_fits_its_own_list_only() {
        let sealed = seal("/v1/hosts", "left/right ä");
        assert_eq!(open("/v1/hosts", &sealed).unwrap(), "left/right ä");
        assert!(open("/v1/images", &sealed).is_err());
        for bad in ["", "x", "left", "/v1/hosts", &"A".repeat(2_000)] {
            assert!(open("/v1/hosts", bad).is_err(), "{bad}");
        }
    }
}
