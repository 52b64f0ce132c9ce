//! The frame of the API server's answers: pages of lists and lines of watches. The objects in them stay text.

use std::{borrow::Cow, collections::BTreeMap};

use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A bookmark with this annotation says that the initial events were all (KEP-3157).
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// A page's `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    /// The state that it shows.
    #[serde(default)]
    pub(super) resource_version: String,
    /// Asks for the next page, if there is one.
    #[serde(rename = "continue", default)]
    pub(super) next: String,
}

/// A line of a watch.
#[derive(Debug)]
pub(super) enum Line<'a> {
    /// An object is now so.
    Is(&'a RawValue),
    /// An object is gone; how it was last.
    Gone(&'a RawValue),
    /// All changes up to this version were sent.
    Bookmark { version: String, is_initial_end: bool },
    /// The watch ends.
    Error(Box<Status>),
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl<'a> Page<'a> {
    /// # Errors
    /// It is no JSON or no list.
    pub(super) fn parse(text: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}

impl<'a> Line<'a> {
    /// # Errors
    /// It is no JSON or no event.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let frame: Frame<'a> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match &*frame.kind {
            "ADDED" | "MODIFIED" => Ok(Self::Is(frame.object)),
            "DELETED" => Ok(Self::Gone(frame.object)),
            "BOOKMARK" => {
                let bookmark: Bookmark =
                    serde_json::from_str(frame.object.get()).map_err(|error| error.to_string())?;
                let annotations = bookmark.metadata.annotations.unwrap_or_default();
                let is_initial_end = annotations.get(INITIAL_END).is_some_and(|value| value == "true");
                Ok(Self::Bookmark { version: bookmark.metadata.resource_version, is_initial_end })
            }
            "ERROR" => {
                let status: Status =
                    serde_json::from_str(frame.object.get()).map_err(|error| error.to_string())?;
                Ok(Self::Error(status.boxed()))
            }
            other => Err(format!("an event of the unknown type {other:?}")),
        }
    }
}
