mod place;
mod row;
