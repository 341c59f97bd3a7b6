"""Models, teachers, energies, weightings, recipes and the distiller."""
