//! `derive(Row)`: the struct as a kind of row, as one row of that kind, and as a value in one (struct) column.

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Error, Fields, GenericParam, LitStr, Result, Type, Visibility, spanned::Spanned};

struct Column {
    ident: Ident,
    visibility: Visibility,
    name: String,
    /// The type with the struct's lifetime as `'static`: the kind of value.
    kind: TokenStream,
}

pub fn derive(input: DeriveInput) -> Result<TokenStream> {
    let lifetime = lifetime(&input)?;
    let columns = columns(&input, lifetime.as_ref())?;
    let name = &input.ident;
    let visibility = &input.vis;
    let handles = format_ident!("{name}Columns");
    let at = |life: &TokenStream| if lifetime.is_some() { quote!(#name<#life>) } else { quote!(#name) };
    let kind = at(&quote!('static));
    let view = at(&quote!('view));
    let traits = [row(name, &kind, &view, &handles, &columns), emit(&kind, &columns), value(&kind, &view)];
    let into = match lifetime {
        Some(_) => quote! {
            impl<'row> ::tidemill::IntoRow for #name<'row> {
                type Row = #kind;
                #[inline(always)]
                fn into_view<'view>(self) -> #name<'view> where Self: 'view { self }
            }
        },
        None => quote! {
            impl ::tidemill::IntoRow for #name {
                type Row = Self;
                #[inline(always)]
                fn into_view<'view>(self) -> Self where Self: 'view { self }
            }
        },
    };
    let (idents, kinds, visibilities) = (idents(&columns), kinds(&columns), columns.iter().map(|c| &c.visibility));
    let doc = format!("Handles of the columns of [`{name}`].");
    Ok(quote! {
        #[doc = #doc]
        #[derive(Clone, Copy, Debug)]
        #[allow(dead_code, reason = "a job need not use every handle")]
        #visibility struct #handles { #(#[allow(missing_docs, reason = "the field of the row says it")] #visibilities #idents: ::tidemill::Col<#kinds>,)* }

        #[allow(missing_docs, clippy::all, reason = "generated")]
        const _: () = {
            #(#traits)*
            #into
        };
    })
}

/// The one lifetime that a row type may have.
fn lifetime(input: &DeriveInput) -> Result<Option<Ident>> {
    let mut found = None;
    for parameter in &input.generics.params {
        match parameter {
            GenericParam::Lifetime(l) if found.is_none() => found = Some(l.lifetime.ident.clone()),
            GenericParam::Lifetime(l) => {
                return Err(Error::new(
                    l.span(),
                    "a row has one lifetime: that of the batch its text is borrowed from",
                ));
            }
            other => {
                return Err(Error::new(other.span(), "a row has no type parameters: its columns have definite types"));
            }
        }
    }
    Ok(found)
}

fn columns(input: &DeriveInput, lifetime: Option<&Ident>) -> Result<Vec<Column>> {
    let data = match &input.data {
        Data::Struct(data) => data,
        Data::Enum(data) => {
            return Err(Error::new(data.enum_token.span, "derive(Row) needs a struct: an enum has no columns"));
        }
        Data::Union(data) => {
            return Err(Error::new(data.union_token.span, "derive(Row) needs a struct: a union has no columns"));
        }
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new(
            input.ident.span(),
            "derive(Row) needs named fields: a column is found by its name, as in `struct Bid { price: i64 }`",
        ));
    };
    if fields.named.is_empty() {
        return Err(Error::new(input.ident.span(), "a row needs at least one column"));
    }
    let mut columns: Vec<Column> = Vec::new();
    for field in &fields.named {
        let Some(ident) = field.ident.clone() else { continue };
        check_type(&field.ty)?;
        let name = renamed(field)?.unwrap_or_else(|| ident.to_string().trim_start_matches("r#").to_owned());
        if columns.iter().any(|c| c.name == name) {
            return Err(Error::new(field.span(), format!("two fields are the column `{name}`")));
        }
        let ty = &field.ty;
        let kind = match lifetime {
            Some(lifetime) => with_static(quote!(#ty), lifetime),
            None => quote!(#ty),
        };
        columns.push(Column { ident, visibility: field.vis.clone(), name, kind });
    }
    Ok(columns)
}

/// Says what to write instead of types that are often tried.
fn check_type(ty: &Type) -> Result<()> {
    if let Type::Reference(reference) = ty
        && reference.lifetime.is_none()
    {
        return Err(Error::new(ty.span(), "give the struct a lifetime and write it here, as in `&'a str`"));
    }
    let Type::Path(path) = ty else { return Ok(()) };
    let Some(last) = path.path.segments.last() else { return Ok(()) };
    let mend = match last.ident.to_string().as_str() {
        "usize" => "usize differs between machines; a column is u32 or u64",
        "isize" => "isize differs between machines; a column is i32 or i64",
        "char" => "a character is a column of text: &str or String",
        "i128" | "u128" => "128-bit integers are no column type; use i64, u64 or text",
        "Instant" | "SystemTime" => "a point in time is a `Timestamp`",
        _ => return Ok(()),
    };
    Err(Error::new(ty.span(), mend))
}

fn renamed(field: &syn::Field) -> Result<Option<String>> {
    let mut name = None;
    for attribute in field.attrs.iter().filter(|a| a.path().is_ident("row")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("rename") {
                return Err(meta.error("unknown option; there is `#[row(rename = \"column\")]`"));
            }
            let literal: LitStr = meta.value()?.parse()?;
            if literal.value().is_empty() {
                return Err(Error::new(literal.span(), "a column's name is not empty"));
            }
            name = Some(literal.value());
            Ok(())
        })?;
    }
    Ok(name)
}

/// The same tokens with `'lifetime` as `'static`.
fn with_static(tokens: TokenStream, lifetime: &Ident) -> TokenStream {
    let mut after_quote = false;
    tokens
        .into_iter()
        .map(|token| {
            let was_quote = std::mem::replace(&mut after_quote, false);
            match token {
                TokenTree::Punct(punct) => {
                    after_quote = punct.as_char() == '\'';
                    TokenTree::Punct(punct)
                }
                TokenTree::Ident(ident) if was_quote && ident == *lifetime => {
                    TokenTree::Ident(Ident::new("static", Span::call_site()))
                }
                TokenTree::Group(group) => {
                    let mut inner = Group::new(group.delimiter(), with_static(group.stream(), lifetime));
                    inner.set_span(group.span());
                    TokenTree::Group(inner)
                }
                other => other,
            }
        })
        .collect()
}

fn idents(columns: &[Column]) -> Vec<&Ident> {
    columns.iter().map(|c| &c.ident).collect()
}

fn kinds(columns: &[Column]) -> Vec<&TokenStream> {
    columns.iter().map(|c| &c.kind).collect()
}

fn row(name: &Ident, kind: &TokenStream, view: &TokenStream, handles: &Ident, columns: &[Column]) -> TokenStream {
    let (idents, kinds, width) = (idents(columns), kinds(columns), columns.len());
    quote! {
        #[derive(Clone)]
        pub struct Reader<'view> { #(#idents: <#kinds as ::tidemill::value::Value>::Reader<'view>,)* }

        impl ::tidemill::Row for #kind {
            type View<'view> = #view;
            type Reader<'view> = Reader<'view>;
            type Columns = #handles;

            const WIDTH: usize = #width;

            fn handles(places: &mut ::tidemill::row::Places<'_>) -> #handles {
                #handles { #(#idents: places.column(),)* }
            }

            fn reader<'view>(
                columns: &mut ::tidemill::value::Cursor<'_, 'view>,
                rows: usize,
            ) -> Self::Reader<'view> {
                Reader { #(#idents: columns.field::<#kinds>(rows),)* }
            }

            #[inline(always)]
            fn view<'view>(reader: &Self::Reader<'view>, row: usize) -> Self::View<'view> {
                #name { #(#idents: <#kinds as ::tidemill::value::Value>::get(&reader.#idents, row),)* }
            }
        }
    }
}

fn emit(kind: &TokenStream, columns: &[Column]) -> TokenStream {
    let (idents, kinds) = (idents(columns), kinds(columns));
    let names = columns.iter().map(|c| &c.name);
    quote! {
        #[derive(Default)]
        pub struct RowWriter { #(#idents: <#kinds as ::tidemill::value::Value>::Writer,)* }

        impl ::tidemill::value::Writer for RowWriter {
            fn reserve(&mut self, rows: usize) {
                #(::tidemill::value::Writer::reserve(&mut self.#idents, rows);)*
            }
            fn push_absent(&mut self) {
                #(::tidemill::value::Writer::push_absent(&mut self.#idents);)*
            }
            fn columns<'view>(&'view self, out: &mut ::std::vec::Vec<::tidemill::abi::ColumnView<'view>>) {
                #(::tidemill::value::Writer::columns(&self.#idents, out);)*
            }
            fn clear(&mut self) {
                #(::tidemill::value::Writer::clear(&mut self.#idents);)*
            }
        }

        impl ::tidemill::row::EmitRow for #kind {
            type Writer = RowWriter;

            fn fields() -> ::std::vec::Vec<::tidemill::plan::Field> {
                ::std::vec![#(::tidemill::plan::Field::new(
                    #names,
                    <#kinds as ::tidemill::value::Value>::data_type(),
                    <#kinds as ::tidemill::value::Value>::NULLABLE,
                ),)*]
            }

            #[inline(always)]
            fn write(writer: &mut RowWriter, row: &Self::View<'_>) {
                #(<#kinds as ::tidemill::value::Value>::push(&mut writer.#idents, &row.#idents);)*
            }
        }
    }
}

fn value(kind: &TokenStream, view: &TokenStream) -> TokenStream {
    quote! {
        impl ::tidemill::value::Value for #kind {
            type View<'view> = #view;
            type Reader<'view> = <Self as ::tidemill::Row>::Reader<'view>;
            type Writer = ::tidemill::row::StructWriter<RowWriter>;

            fn data_type() -> ::tidemill::plan::DataType {
                ::tidemill::plan::DataType::Struct(<Self as ::tidemill::row::EmitRow>::fields())
            }

            fn reader<'view>(
                columns: &mut ::tidemill::value::Cursor<'_, 'view>,
                rows: usize,
            ) -> Self::Reader<'view> {
                columns.take();
                <Self as ::tidemill::Row>::reader(columns, rows)
            }

            #[inline(always)]
            fn get<'view>(reader: &Self::Reader<'view>, row: usize) -> Self::View<'view> {
                <Self as ::tidemill::Row>::view(reader, row)
            }

            #[inline(always)]
            fn push(writer: &mut Self::Writer, row: &Self::View<'_>) {
                <Self as ::tidemill::row::EmitRow>::write(&mut writer.0, row);
            }
        }
    }
}
