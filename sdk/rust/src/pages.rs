//! Lists, fetched part by part as they are read.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, TryStreamExt};
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::transport::Client;
use crate::types::Page;

/// Objects asked for at a time.
const PAGE: &str = "200";

/// A list as a stream; the next part is fetched when it is needed.
pub struct Listing<T>(Pin<Box<dyn Stream<Item = Result<T>> + Send>>);

impl<T> std::fmt::Debug for Listing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").finish_non_exhaustive()
    }
}

impl<T> Stream for Listing<T> {
    type Item = Result<T>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl<T> Listing<T> {
    /// All objects of the list.
    pub async fn all(self) -> Result<Vec<T>> {
        self.0.try_collect().await
    }

    /// The first objects of the list, `most` at most.
    pub async fn first(self, most: usize) -> Result<Vec<T>> {
        use futures::StreamExt;
        self.0.take(most).try_collect().await
    }
}

impl Client {
    /// The list at a path.
    pub(crate) fn listing<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Listing<T> {
        let client = self.clone();
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        let query: Vec<(String, String)> = query
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let parts = futures::stream::try_unfold(Some(None::<String>), move |next| {
            let (client, path, query) = (client.clone(), path.clone(), query.clone());
            async move {
                let Some(cursor) = next else {
                    return Ok(None);
                };
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                let mut query: Vec<(&str, &str)> = query
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                query.push(("limit", PAGE));
                if let Some(cursor) = &cursor {
                    query.push(("cursor", cursor));
                }
                let page: Page<T> = client.get(&path, &query).await?;
                let items = futures::stream::iter(page.items.into_iter().map(Ok));
                Ok(Some((items, page.next_cursor.map(Some))))
            }
        });
        Listing(Box::pin(parts.try_flatten()))
    }
}
