//! The text of a file, taken apart into objects: several YAML or JSON documents, lists of objects, and what else
//! people keep in such files.

use serde::Deserialize;
use serde_json::Value as Json;

use crate::watch::convert::Kind;

/// An object that we read.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// What it says to be.
    pub(super) kind: Kind,
    /// The object.
    pub(super) json: Json,
}

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Manifest {
    /// Objects of our kinds, in the order of the file.
    pub(super) found: Vec<Found>,
    /// What is no object at all; the rest of the file is good.
    pub(super) bad: Vec<String>,
    /// Whether there was anything in it.
    pub(super) is_empty: bool,
}

/// Takes `text` apart. JSON where the name says so; all else is YAML, which most JSON is too.
///
/// # Errors
/// It is neither; with the line.
pub(super) fn parse(text: &[u8], is_json: bool) -> Result<Manifest, String> {
    let documents = if is_json {
        serde_json::Deserializer::from_slice(text)
            .into_iter::<Json>()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?
    } else {
        serde_yaml_ng::Deserializer::from_slice(text)
            .map(Json::deserialize)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?
    };
    let mut manifest = Manifest { is_empty: documents.iter().all(Json::is_null), ..Manifest::default() };
    for (i, document) in documents.into_iter().enumerate() {
        if !document.is_null() {
            manifest.add(document, None, &format!("document {}", i + 1));
        }
    }
    Ok(manifest)
}

impl Manifest {
    /// `kind` and `version` of the list it is in, if that says them.
    fn add(&mut self, mut json: Json, from_list: Option<(&str, &str)>, place: &str) {
        if !json.is_object() {
            self.bad.push(format!("{place} is no object"));
            return;
        }
        let text = |field: &str| json.get(field).and_then(Json::as_str).unwrap_or("").to_owned();
        let (mut kind, mut version) = (text("kind"), text("apiVersion"));
        if let Some((of_list, version_of_list)) = from_list.filter(|_| kind.is_empty()) {
            // As the API server answers: the items of a ServiceList don't repeat what they are.
            (kind, version) = (of_list.to_owned(), version_of_list.to_owned());
        }
        if kind.is_empty() {
            self.bad.push(format!("{place} has no kind"));
            return;
        }
        if let Some(of_items) = kind.strip_suffix("List") {
            let Json::Array(items) = json["items"].take() else { return };
            for (i, item) in items.into_iter().enumerate() {
                self.add(item, Some((of_items, &version)), &format!("{place}, items[{i}]"));
            }
            return;
        }
        // Other groups have kinds of these names too: serving.knative.dev has a Service.
        let kind = match (version.as_str(), kind.as_str()) {
            ("v1" | "", "Service") => Kind::Service,
            ("v1" | "", "Node") => Kind::Node,
            ("v1" | "", "Pod") => Kind::Pod,
            ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1" | "", "ServiceCIDR") => Kind::ServiceCidr,
            ("discovery.k8s.io/v1" | "", "EndpointSlice") => Kind::Slice,
            _ => return,
        };
        self.found.push(Found { kind, json });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds and names found, and what was bad.
    fn read(text: &str) -> (Vec<(Kind, String)>, Vec<String>) {
        let manifest = parse(text.as_bytes(), false).unwrap();
        let name = |json: &Json| json["metadata"]["name"].as_str().unwrap_or("").to_owned();
        (manifest.found.iter().map(|found| (found.kind, name(&found.json))).collect(), manifest.bad)
    }

    #[test]
    fn documents_and_lists_are_taken_apart_and_other_kinds_are_ignored() {
        let (found, bad) = read(
            "---\n# nothing\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n\
             apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: other}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: r}\n---\n\
             apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: other}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: b}}\n\
             - {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Service, metadata: {name: c}}]}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- {metadata: {name: d}}\n",
        );
        let expected = [
            (Kind::Service, "a"),
            (Kind::ServiceCidr, "r"),
            (Kind::Node, "b"),
            (Kind::Service, "c"),
            (Kind::Slice, "d"),
        ];
        assert_eq!(found, expected.map(|(kind, name)| (kind, name.to_owned())));
        assert_eq!(bad, Vec::<String>::new());
    }

    #[test]
    fn what_is_no_object_is_named_by_its_place() {
        let (found, bad) = read("hello\n---\nspec: {}\n---\nkind: List\nitems: [1, {kind: Service}]\n");
        assert_eq!(found.len(), 1);
        assert_eq!(
            bad,
            ["document 1 is no object", "document 2 has no kind", "document 3, items[0] is no object"]
        );
    }

    #[test]
    fn json_may_follow_json() {
        let text = br#"{"kind":"Service","metadata":{"name":"a"}} {"kind":"Node"}"#;
        assert_eq!(parse(text, true).unwrap().found.len(), 2);
        assert!(parse(b"{\"kind\":", true).unwrap_err().contains("line 1"));
    }

    #[test]
    fn text_that_is_no_yaml_is_refused_with_its_line() {
        let error = parse(b"kind: Service\nspec: [1,\n", false).unwrap_err();
        assert!(error.contains("line"), "{error}");
    }
}
