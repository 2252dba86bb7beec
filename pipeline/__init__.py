"""From whole-slide images to bags, and from predictions to pictures: one module a stage."""
