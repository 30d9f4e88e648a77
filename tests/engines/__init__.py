"""woodfrog under the engines that people use it with."""
