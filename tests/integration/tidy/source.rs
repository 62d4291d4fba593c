//! What a source file says of others: the paths that it names, what it defines and what it imports.

use std::collections::HashSet;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A module as the names on the way to it, without the crate's.
pub type Module = Vec<String>;

/// A path that code names.
#[derive(Debug)]
pub struct Named {
    /// Where.
    pub module: Module,
    /// `crate`, `super` and `self` included.
    pub segments: Vec<String>,
    pub line: usize,
    pub is_test: bool,
    /// What a `use` binds it to; a glob binds nothing.
    pub binding: Binding,
}

#[derive(Debug, PartialEq)]
pub enum Binding {
    /// Not a `use`.
    None,
    Name(String),
    Glob,
}

/// A function with its lines.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub num_lines: usize,
}

/// A file that was parsed.
#[derive(Debug, Default)]
pub struct Source {
    pub named: Vec<Named>,
    /// Items by their module and name; modules are not among them.
    pub items: HashSet<(Module, String)>,
    /// Modules with their bodies in the file, its own included.
    pub modules: HashSet<Module>,
    /// Modules in other files that only tests have.
    pub test_modules: HashSet<Module>,
    pub functions: Vec<Function>,
}

impl Source {
    /// Reads the file of `module`.
    pub fn parse(module: Module, text: &str) -> syn::Result<Self> {
        let file = syn::parse_file(text)?;
        let mut reader = Reader {
            module,
            is_test: false,
            source: Self::default(),
        };
        reader.source.modules.insert(reader.module.clone());
        reader.visit_file(&file);
        Ok(reader.source)
    }
}

struct Reader {
    module: Module,
    is_test: bool,
    source: Source,
}

impl Reader {
    fn name(&mut self, segments: Vec<String>, span: Span, binding: Binding) {
        self.source.named.push(Named {
            module: self.module.clone(),
            segments,
            line: span.start().line,
            is_test: self.is_test,
            binding,
        });
    }

    fn define(&mut self, name: &syn::Ident) {
        let item = (self.module.clone(), name.to_string());
        self.source.items.insert(item);
    }

    fn measure(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let first = signature.fn_token.span.start().line;
        let last = body.brace_token.span.close().start().line;
        self.source.functions.push(Function {
            name: signature.ident.to_string(),
            num_lines: last + 1 - first,
        });
    }

    fn import(&mut self, tree: &syn::UseTree, mut prefix: Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.import(&path.tree, prefix);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, prefix.clone());
                }
            }
            syn::UseTree::Glob(glob) => {
                self.name(prefix, glob.star_token.span, Binding::Glob);
            }
            syn::UseTree::Name(name) => self.import_name(prefix, &name.ident, &name.ident),
            syn::UseTree::Rename(rename) => {
                self.import_name(prefix, &rename.ident, &rename.rename);
            }
        }
    }

    fn import_name(&mut self, mut path: Vec<String>, name: &syn::Ident, bound: &syn::Ident) {
        let mut bound = bound.to_string();
        if name == "self" {
            // `use a::b::{self}` binds `b`.
            if bound == "self" {
                bound = path.last().cloned().unwrap_or_default();
            }
        } else {
            path.push(name.to_string());
        }
        self.name(path, name.span(), Binding::Name(bound));
    }

    /// Paths in the arguments of a macro or an attribute, which are not parsed.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut span = Span::call_site();
        let mut num_colons = 0;
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for token in &tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    num_colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) if num_colons == 2 => path.push(ident.to_string()),
                other => {
                    self.end_path(&mut path, span);
                    match other {
                        TokenTree::Ident(ident) => {
                            span = ident.span();
                            path.push(ident.to_string());
                        }
                        TokenTree::Group(group) => self.scan(group.stream()),
                        _ => {}
                    }
                }
            }
            num_colons = 0;
        }
        self.end_path(&mut path, span);
    }

    fn end_path(&mut self, path: &mut Vec<String>, span: Span) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.name(path, span, Binding::None);
        }
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string() == "test",
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Const(item) => self.define(&item.ident),
            syn::Item::Enum(item) => self.define(&item.ident),
            syn::Item::Fn(item) => self.define(&item.sig.ident),
            syn::Item::Static(item) => self.define(&item.ident),
            syn::Item::Struct(item) => self.define(&item.ident),
            syn::Item::Trait(item) => self.define(&item.ident),
            syn::Item::TraitAlias(item) => self.define(&item.ident),
            syn::Item::Type(item) => self.define(&item.ident),
            syn::Item::Union(item) => self.define(&item.ident),
            syn::Item::Macro(item) => {
                if let Some(name) = &item.ident {
                    self.define(name);
                }
            }
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let was_test = self.is_test;
        self.is_test |= is_for_tests(&item.attrs);
        self.module.push(item.ident.to_string());
        let module = self.module.clone();
        match item.content {
            Some(_) => {
                self.source.modules.insert(module);
                visit::visit_item_mod(self, item);
            }
            None if self.is_test => drop(self.source.test_modules.insert(module)),
            None => {}
        }
        self.module.pop();
        self.is_test = was_test;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.import(&item.tree, Vec::new());
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let was_test = self.is_test;
        self.is_test |= is_for_tests(&item.attrs);
        self.measure(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
        self.is_test = was_test;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.measure(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let segments = path.segments.iter();
            let segments = segments.map(|segment| segment.ident.to_string());
            let span = path.segments[0].ident.span();
            self.name(segments.collect(), span, Binding::None);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::room)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        match &attribute.meta {
            syn::Meta::List(list) => self.scan(list.tokens.clone()),
            _ => visit::visit_attribute(self, attribute),
        }
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        visit::visit_macro(self, item);
        self.scan(item.tokens.clone());
    }
}
