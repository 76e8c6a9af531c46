//! From a path with links to the plain path that it means.
//!
//! What always holds: a link to an absolute path starts again at the root of the same file system; `..` does not leave
//! it; links, steps and lengths are bounded.

use super::{FileError, Node, Tree};
use crate::limits::{LINKS_MAX, PATH_BYTES_MAX, STEPS_MAX};
use crate::shown::shown;

/// Finds what a path leads to, links followed, and its plain path.
pub(super) fn resolve(tree: &dyn Tree, path: &str) -> Result<(String, Node), FileError> {
    let too_long = || FileError::Path(shown(path));
    let missing = || FileError::NotFound(shown(path));
    if path.len() > PATH_BYTES_MAX {
        return Err(too_long());
    }
    // The next name is at the end.
    let mut open: Vec<String> = names(path);
    let mut plain: Vec<String> = Vec::new();
    let mut node = Node::Directory;
    let (mut steps, mut links) = (0, 0);
    while let Some(name) = open.pop() {
        steps += 1;
        if steps > STEPS_MAX {
            return Err(too_long());
        }
        if node != Node::Directory {
            return Err(missing());
        }
        if name == ".." {
            plain.pop();
            continue;
        }
        plain.push(name);
        let full = join(&plain);
        if full.len() > PATH_BYTES_MAX {
            return Err(too_long());
        }
        node = tree.node(&full)?.ok_or_else(missing)?;
        if let Node::Link(target) = &node {
            links += 1;
            if links > LINKS_MAX || target.len() > PATH_BYTES_MAX {
                return Err(too_long());
            }
            match target.starts_with('/') {
                true => plain.clear(),
                false => drop(plain.pop()),
            }
            open.extend(names(target));
            node = Node::Directory;
        }
    }
    Ok((join(&plain), node))
}

/// The names in a path, the first at the end; those that mean nothing are left out.
fn names(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .rev()
        .map(str::to_owned)
        .collect()
}

fn join(names: &[String]) -> String {
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::Sink;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A file system in memory.
    #[derive(Debug)]
    struct Made(BTreeMap<String, Node>);

    impl Made {
        fn new(nodes: &[(&str, Node)]) -> Self {
            Self(
                nodes
                    .iter()
                    .map(|(path, node)| ((*path).to_owned(), node.clone()))
                    .collect(),
            )
        }
    }

    impl Tree for Made {
        fn node(&self, path: &str) -> Result<Option<Node>, FileError> {
            Ok(self.0.get(path).cloned())
        }
        fn names(&self, _path: &str) -> Result<Vec<String>, FileError> {
            Ok(Vec::new())
        }
        fn read(&self, _path: &str, _sink: &mut Sink<'_>) -> Result<(), FileError> {
            Ok(())
        }
    }

    fn link(target: &str) -> Node {
        Node::Link(target.to_owned())
    }

    #[test]
    fn links_are_followed_within_the_file_system() {
        let tree = Made::new(&[
            ("/boot", Node::Directory),
            ("/boot/vmlinuz-6", Node::File { bytes: 7 }),
            ("/boot/up", link("../../../boot/vmlinuz-6")),
            ("/vmlinuz", link("boot/vmlinuz-6")),
            ("/other", link("/boot/../vmlinuz")),
            ("/dir", link("boot")),
        ]);
        let file = ("/boot/vmlinuz-6".to_owned(), Node::File { bytes: 7 });
        for path in [
            "/vmlinuz",
            "/other",
            "/dir/vmlinuz-6",
            "//boot/./vmlinuz-6",
            "/boot/up",
            "/../vmlinuz",
        ] {
            assert_eq!(resolve(&tree, path).unwrap(), file, "{path}");
        }
        assert_eq!(
            resolve(&tree, "/").unwrap(),
            ("/".to_owned(), Node::Directory)
        );
        for path in ["/none", "/vmlinuz/x", "/boot/vmlinuz-6/.."] {
            assert!(
                matches!(resolve(&tree, path), Err(FileError::NotFound(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn circles_end() {
        let tree = Made::new(&[
            ("/a", link("b")),
            ("/b", link("/a")),
            ("/grow", link("grow/x/x/x/x")),
        ]);
        for path in ["/a", "/grow"] {
            assert!(
                matches!(resolve(&tree, path), Err(FileError::Path(_))),
                "{path}"
            );
        }
        let long = "/x".repeat(PATH_BYTES_MAX);
        assert!(matches!(resolve(&tree, &long), Err(FileError::Path(_))));
    }

    proptest! {
        #[test]
        fn any_links_end(
            targets in proptest::collection::vec("(/|\\.\\./|[abc]/|\\./){0,6}[abc]", 3),
            path in "(/[abc.]{1,2}){0,8}",
        ) {
            let tree = Made::new(&[
                ("/a", link(&targets[0])),
                ("/b", link(&targets[1])),
                ("/c", Node::Directory),
                ("/c/a", link(&targets[2])),
                ("/c/b", Node::File { bytes: 1 }),
            ]);
            if let Ok((plain, node)) = resolve(&tree, &path) {
                let expected = match plain.as_str() {
                    "/" => Some(Node::Directory),
                    other => tree.0.get(other).cloned(),
                };
                prop_assert_eq!(expected, Some(node));
            }
        }
    }
}
